"""A prepared data set of two clouds of points, and a context for the search stage."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from cluster.bundle.signature import TensorSpec
from cluster.pipeline.stage import StageContext
from cluster.spec.load import validate_spec
from cluster.spec.resolve import DataFacts, HostFacts, resolve
from cluster.store.run_folder import RunFolder
from cluster.telemetry.events import ListSink
from trainers.data.shards import Split, write_prepared

ROWS = {"train": 96, "validation": 48, "calibration": 8, "gate": 8, "test": 8}


@pytest.fixture(scope="session")
def clouds(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run folder whose prepare stage holds two classes of four features, separable but for noise."""
    run = tmp_path_factory.mktemp("clouds") / "clouds"
    rng = np.random.default_rng(7)
    splits = {}
    for name, rows in ROWS.items():
        targets = np.arange(rows, dtype=np.int64) % 2
        features = rng.normal(size=(rows, 4)).astype(np.float32) + 1.5 * targets[:, None].astype(np.float32)
        splits[name] = Split({"features": features}, targets)
    folder = run / "stages" / "prepare"
    folder.mkdir(parents=True)
    tensor = TensorSpec(name="features", datatype="FP32", shape=(-1, 4))
    write_prepared(folder, splits, task="classification", classes=("0", "1"), inputs=(tensor,))
    return run


@pytest.fixture
def make_context(clouds: Path, tmp_path: Path) -> Callable[..., StageContext]:
    """A search stage's context over the clouds; `search` overrides the section."""

    def make(**search: Any) -> StageContext:
        space = {
            "train.optimizer.learning_rate": {"kind": "log_uniform", "low": 1e-3, "high": 1e-1},
            "train.batch_size_global": {"kind": "choice", "values": [8, 16, 32]},
        }
        raw = {
            "version": 1,
            "data": {"source": {"kind": "sklearn", "dataset": "digits"}, "task": "classification"},
            "model": {"family": "mlp", "hidden": [8]},
            "train": {"epochs": 3, "batch_size_global": 16, "workers": 1, "precision": "fp32"},
            "search": {"space": space, "trials": 4, "concurrency": 2, "grace_epochs": 1, **search},
        }
        host = HostFacts(cpu_cores=2, memory_bytes=8 << 30)
        data = DataFacts(
            task="classification", layout="array", num_rows=168, num_rows_train=96, num_classes=2, source_digest="x"
        )
        spec = validate_spec(raw)
        folder = tmp_path / "search"
        folder.mkdir(exist_ok=True)
        return StageContext(
            stage="search",
            run=RunFolder(clouds),
            spec=spec,
            resolved=resolve(spec, name="clouds", host=host, data=data),
            host=host,
            folder=folder,
            digest="d" * 64,
            records={},
            events=ListSink(),
        )

    return make
