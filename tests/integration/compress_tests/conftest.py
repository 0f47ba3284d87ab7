"""A trained run on real digits, made by hand in a second: what the prepare and train stages leave behind."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split

from cluster.bundle.files import finish_bundle, write_bundle
from cluster.bundle.manifest import BundleManifest, Variant
from cluster.bundle.signature import TensorSignature, TensorSpec
from cluster.pipeline.stage import StageContext
from cluster.spec.compress import CompressSpec
from cluster.spec.resolve import DataFacts, HostFacts, ResolvedRun, resolve
from cluster.spec.run import RunSpec
from cluster.store.run_folder import RunFolder, StageRecord
from cluster.telemetry.events import ListSink
from trainers.compress import latency
from trainers.compress.measure import measure_baseline
from trainers.compress.recipe_search import RecipeSearch
from trainers.compress.rows import rows_of
from trainers.data.shards import Split, open_prepared, write_prepared
from trainers.export.bundle import copy_graph, write_sample
from trainers.export.float_graph import real_rows, write_float_graph
from trainers.models import build_model

IMAGE = TensorSpec(name="image", datatype="FP32", shape=(-1, 1, 8, 8))
HOST = HostFacts(cpu_cores=2, memory_bytes=1 << 33)
SHARES = {"test": 270, "gate": 500, "calibration": 100, "validation": 100}


def digits_spec(**sections: Any) -> RunSpec:
    """A spec of a narrow network, with sections replaced; few gate rows prove nothing: point estimates count."""
    compress = sections.get("compress", {})
    if compress is not None:
        sections["compress"] = {"on_inconclusive": "accept_point_estimate", **compress}
    return RunSpec.model_validate_json(
        RunSpec.model_validate(
            {
                "version": 1,
                "data": {"source": {"kind": "sklearn", "dataset": "digits"}},
                "model": {"family": "cnn", "width": 16, "stages": 2, "dropout": 0.0},
                **sections,
            }
        ).model_dump_json()
    )


def split_digits() -> dict[str, Split]:
    images, labels = load_digits(return_X_y=True)
    images = (images.reshape(-1, 1, 8, 8) / 16).astype(np.float32)
    splits, labels = {}, labels.astype(np.int64)
    for name, rows in SHARES.items():
        images, some, labels, theirs = train_test_split(images, labels, test_size=rows, stratify=labels, random_state=7)
        splits[name] = Split({"image": some}, theirs)
    return {"train": Split({"image": images}, labels), **splits}


def train_briefly(module: torch.nn.Module, split: Split, epochs: int = 8) -> None:
    """Plain Adam on the whole split: enough for about 98 % on digits."""
    torch.manual_seed(7)
    x, y = torch.from_numpy(split.inputs["image"]), torch.from_numpy(split.targets)
    optimizer = torch.optim.AdamW(module.parameters(), lr=3e-3)
    module.train()
    for _ in range(epochs):
        for rows in torch.randperm(len(y)).split(64):
            optimizer.zero_grad()
            torch.nn.functional.cross_entropy(module(x[rows]), y[rows]).backward()
            optimizer.step()
    module.eval()


@pytest.fixture(autouse=True)
def short_rounds(monkeypatch: pytest.MonkeyPatch) -> None:
    """Times are measured as always, for a tenth of the time: no test here quotes them."""
    monkeypatch.setattr(latency, "ROUND_S", 0.002)


@pytest.fixture(scope="session")
def trained_stages(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """`stages/` with `prepare` and `train` filled."""
    torch.set_num_threads(1)
    folder = tmp_path_factory.mktemp("digits") / "stages"
    splits = split_digits()
    classes = tuple(str(digit) for digit in range(10))
    write_prepared(folder / "prepare", splits, task="classification", classes=classes, inputs=(IMAGE,))
    torch.manual_seed(7)
    module = build_model(digits_spec().model, (IMAGE,), 10)
    train_briefly(module, splits["train"])
    (folder / "train").mkdir()
    save_file(module.state_dict(), folder / "train" / "weights.safetensors")
    return folder


def resolved_digits(spec: RunSpec) -> ResolvedRun:
    facts = DataFacts(
        task="classification", layout="image", num_rows=1797, num_rows_train=827, num_classes=10, source_digest="0" * 64
    )
    return resolve(spec, name="digits", host=HOST, data=facts)


@pytest.fixture
def make_context(tmp_path: Path, trained_stages: Path) -> Any:
    """`make(stage, records, **sections) -> StageContext` on a run folder with the trained stages in it."""
    run = RunFolder(tmp_path / "run")
    run.path.mkdir()
    (run.path / "stages").mkdir()
    for stage in ("prepare", "train"):
        run.stage(stage).symlink_to(trained_stages / stage)

    def make(stage: str, records: dict[str, StageRecord] | None = None, **sections: Any) -> StageContext:
        folder = run.stage(stage)
        folder.mkdir(parents=True, exist_ok=True)
        spec = digits_spec(**sections)
        return StageContext(
            stage=stage,
            run=run,
            spec=spec,
            resolved=resolved_digits(spec),
            host=HOST,
            folder=folder,
            digest="0" * 64,
            records=records or {},
            events=ListSink(),
        )

    return make


@pytest.fixture
def prepared_digits(trained_stages: Path) -> Any:
    return open_prepared(trained_stages / "prepare")


@pytest.fixture(scope="session")
def digits_graph(trained_stages: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The trained network's float graph."""
    folder = tmp_path_factory.mktemp("graph")
    write_float_graph(digits_spec(), open_prepared(trained_stages / "prepare"), trained_stages / "train", folder)
    return folder / "model.onnx"


@pytest.fixture
def make_search(tmp_path: Path, digits_graph: Path, trained_stages: Path) -> Any:
    """`make(**compress section) -> RecipeSearch` on the trained network, without a run around it."""

    def make(**section: Any) -> RecipeSearch:
        spec = CompressSpec.model_validate_json(json.dumps(section))
        prepared = open_prepared(trained_stages / "prepare")
        rows = rows_of(prepared, calibration_rows=spec.calibration_rows)
        baseline = measure_baseline(digits_graph, rows)
        return RecipeSearch(spec, rows, prepared.folder, baseline, tmp_path / "trials", ListSink())

    return make


@pytest.fixture(scope="session")
def digits_run(trained_stages: Path, digits_graph: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run folder with prepared data and a float bundle, as `manta compress` finds it. Tests do not change it."""
    run = tmp_path_factory.mktemp("runs") / "digits"
    run.mkdir()
    (run / "stages").symlink_to(trained_stages)
    prepared = open_prepared(trained_stages / "prepare")
    variants = (Variant(name="fp32", file="model.onnx", precision="fp32"),)
    with write_bundle(run / "bundle") as folder:
        copy_graph(digits_graph, folder / "model.onnx")
        write_sample(folder, variants, real_rows(prepared))
        outputs = (TensorSpec(name="logits", datatype="FP32", shape=(-1, 10)),)
        manifest = BundleManifest(
            name="digits", created_unix_s=0.0, task="classification", classes=prepared.classes,
            signature=TensorSignature(inputs=prepared.inputs, outputs=outputs), variants=variants,
            default_variant="fp32", model=digits_spec().model.model_dump(mode="json"), files={},
        )  # fmt: skip
        finish_bundle(folder, manifest)
    return run
