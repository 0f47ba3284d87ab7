"""Prepared data without files, for tests of what the evaluate stage measures."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

import numpy as np

from cluster.bundle.signature import TensorSpec
from trainers.data.shards import PreparedData, Split


def table(
    inputs: dict[str, tuple[np.ndarray, np.ndarray]],
    targets: tuple[np.ndarray, np.ndarray],
    classes: tuple[str, ...] = (),
    weights: np.ndarray | None = None,
) -> PreparedData:
    """Arrays as (training rows, test rows)."""
    datatypes: dict[Any, Literal["FP32", "INT64"]] = {"f": "FP32", "i": "INT64"}
    specs = tuple(
        TensorSpec(name=name, datatype=datatypes[train.dtype.kind], shape=(-1, *train.shape[1:]))
        for name, (train, _) in inputs.items()
    )
    splits = {
        split: Split(
            {name: arrays[at] for name, arrays in inputs.items()}, targets[at], weights if split == "train" else None
        )
        for at, split in enumerate(("train", "test"))
    }
    return PreparedData(Path(), "classification" if classes else "regression", classes, specs, splits, {})


def exclusive_or(rows: int, seed: int, width: int = 4) -> tuple[np.ndarray, np.ndarray]:
    """A question that no straight line answers: whether the first two features have one sign."""
    features = np.random.default_rng(seed).normal(size=(rows, width)).astype(np.float32)
    return features, (features[:, 0] * features[:, 1] > 0).astype(np.int64)
