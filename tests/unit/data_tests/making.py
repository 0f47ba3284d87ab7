"""Specs, files and stage contexts for the tests of the data room."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from cluster.errors import MantaError
from cluster.pipeline.stage import StageContext
from cluster.spec.data import DataSpec
from cluster.spec.load import validate_spec
from cluster.spec.remedy import in_force
from cluster.spec.resolve import HostFacts
from cluster.spec.run import RunSpec
from cluster.store.run_folder import RunFolder
from cluster.telemetry.events import ListSink
from trainers.data.fit.training_statistics import Statistics, TrainingRows
from trainers.data.read.raw import RawData
from trainers.data.stages import check_data, prepare_data
from trainers.data.targets import settle_target

HOST = HostFacts(cpu_cores=2, memory_bytes=1 << 30)


def data_spec(source: dict[str, Any], **values: Any) -> DataSpec:
    return DataSpec.model_validate_json(json.dumps({"source": source, **values}))


def run_spec(source: dict[str, Any], **values: Any) -> RunSpec:
    return validate_spec({"version": 1, "data": {"source": source, **values}})


def context(folder: Path, spec: RunSpec, stage: str = "check", resolved: Any = None) -> StageContext:
    folder.mkdir(parents=True, exist_ok=True)
    return StageContext(
        stage=stage,
        run=RunFolder(folder),
        spec=spec,
        resolved=resolved,
        host=HOST,
        folder=folder,
        digest="d",
        records={},
        events=ListSink(),
    )


@contextmanager
def answered(spec: RunSpec) -> Iterator[None]:
    """No error of the block has a remedy that the spec follows already."""
    try:
        yield
    except MantaError as error:
        refuse_idle_remedy(error, spec)
        raise


def refuse_idle_remedy(error: MantaError, spec: RunSpec) -> None:
    """Fail where an error tells what the spec says already."""
    assert in_force(error.remedy, spec) == [], error.message


def check(folder: Path, spec: RunSpec) -> Any:
    with answered(spec):
        return check_data(context(folder, spec))


def prepare(folder: Path, spec: RunSpec) -> Any:
    resolved = check(folder, spec).resolved
    with answered(spec):
        return prepare_data(context(folder, spec, "prepare", resolved))


def target_of(raw: RawData) -> np.ndarray:
    """What is learned of each row."""
    assert raw.rules is not None
    return settle_target(raw.rules.spec, raw.rows.target, len(raw.rows), {}).read(raw.rows.target)


def training(values: dict[str, Any], targets: np.ndarray) -> Statistics:
    """What transforms are fitted on, of rows in memory."""
    return Statistics.of(TrainingRows(values, targets, np.arange(len(targets), dtype=np.uint64)))


def write_table(path: Path, num_rows: int = 400, *, seed: int = 0, positive: float = 0.4) -> Path:
    """A CSV with numbers, categories, holes, and a target `y` that depends on them."""
    rng = np.random.default_rng(seed)
    age = rng.normal(40, 10, num_rows).round(3)
    color = rng.choice(["red", "green", "blue"], num_rows)
    y = np.where(rng.random(num_rows) < positive, "yes", "no")
    lines = ["age,size,color,y"]
    for index in range(num_rows):
        size = "?" if index % 17 == 0 else f"{rng.exponential(5):.4f}"
        shift = 5 if y[index] == "yes" else 0
        lines.append(f"{age[index] + shift}, {size}, {color[index]},{y[index]}")
    path.write_text("\n".join(lines) + "\n")
    return path
