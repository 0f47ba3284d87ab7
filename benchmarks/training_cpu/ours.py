"""Our side: one epoch of `fit`, timed by itself (`FitResult.details`), validation on a handful of rows included."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np

MLP_ROWS, FEATURES, CLASSES, MLP_BATCH = 200_000, 100, 10, 256
CNN_ROWS, CNN_BATCH = 4096, 128


def write_data(folder: Path) -> None:
    """Random rows; what is learned does not matter for time."""
    from cluster.bundle.signature import TensorSpec
    from trainers.data.shards import Split, write_prepared

    rng = np.random.default_rng(0)

    def one(name: str, rows: int, shape: tuple[int, ...]) -> None:
        x, y = rng.normal(size=(rows, *shape)).astype(np.float32), rng.integers(0, CLASSES, rows)
        write_prepared(
            folder / name,
            {"train": Split({"x": x}, y), "validation": Split({"x": x[:64]}, y[:64])},
            task="classification",
            classes=tuple("0123456789"),
            inputs=(TensorSpec(name="x", datatype="FP32", shape=(-1, *shape)),),
        )

    one("mlp", MLP_ROWS, (FEATURES,))
    one("cnn", CNN_ROWS, (3, 32, 32))


def _fit(folder: Path, model: dict, batch: int, micro: int, workers: int, **train: object) -> tuple[float, float]:
    from pydantic import TypeAdapter

    from cluster.spec.batch_plan import BatchPlan
    from cluster.spec.model import ModelSpec
    from cluster.spec.train import TrainSpec
    from cluster.telemetry.events import ListSink
    from trainers.loop import FitRequest, fit

    options = {"epochs": 1, "precision": "fp32", "clip_norm": None, "diagnostics_every_updates": None, **train}
    request = FitRequest(
        train=TrainSpec.model_validate_json(json.dumps(options)),
        batch=BatchPlan(
            batch_size_global=batch,
            batch_size_per_worker=micro,
            workers=workers,
            updates_per_epoch=1,
            updates_total=1,
        ),
        model=TypeAdapter(ModelSpec).validate_json(json.dumps(model)),
        seed=7,
        prepared=folder,
        stage="train",
        checkpoints=None,
    )
    details = fit(request, sink=ListSink()).details
    return details["seconds"], details["cpu_seconds"]


MLP = {"family": "mlp", "hidden": [128, 128]}
CNN = {"family": "cnn", "width": 16, "dropout": 0.0}
RUNNERS: dict[str, Callable[[Path], tuple[float, float]]] = {
    "mlp": lambda folder: _fit(folder / "mlp", MLP, MLP_BATCH, MLP_BATCH, 1),
    "mlp_inspected": lambda folder: _fit(folder / "mlp", MLP, MLP_BATCH, MLP_BATCH, 1, diagnostics_every_updates=200),
    "cnn": lambda folder: _fit(folder / "cnn", CNN, CNN_BATCH, CNN_BATCH // 2, 2),
    "cnn_8": lambda folder: _fit(folder / "cnn", CNN, CNN_BATCH, CNN_BATCH // 16, 2),
}
