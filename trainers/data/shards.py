"""Prepared data on disk: one memory-mapped array a tensor and split, and `dataset.json` that lists them.

    dataset.json  train/inputs.<name>.npy  train/targets.npy  [train/weights.npy]  validation/…

Invariant: shards hold exactly what the model's forward takes, in the order of the signature; any worker reads any
row by its index without reading the rest; `dataset.json` is written last, so that a reader sees a complete set or none.

Covered: write, open. Not covered: hashes (the stage record and shard_store.py have them).
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np

from cluster.atomic import disk_errors, write_json
from cluster.bundle.signature import TensorSpec
from cluster.bundle.target import TargetTransform
from cluster.errors import DataError
from trainers.data.shard_store import StoredShards

DATASET = "dataset.json"
TARGET_FACTS = "target"
"""Among a data set's facts: the transform of a quantity, and why it is that (fit/target.py)."""


@dataclass(frozen=True)
class Split:
    """One split: arrays of equal length, memory-mapped read-only."""

    inputs: dict[str, np.ndarray]
    """name -> (N, …), in the order of the signature."""
    targets: np.ndarray
    """(N,) int64 class indices, or (N,) float32 values in the target's own unit."""
    weights: np.ndarray | None = None
    """(N,) float32 sample weights, or None for all ones."""

    def __len__(self) -> int:
        return len(self.targets)


@dataclass(frozen=True)
class PreparedData:
    """A prepared data set: its splits, and what a model must know about them."""

    folder: Path
    task: Literal["classification", "regression"]
    classes: tuple[str, ...]
    """Labels by class index; empty for regression."""
    inputs: tuple[TensorSpec, ...]
    splits: dict[str, Split]
    facts: dict[str, Any]

    @property
    def num_outputs(self) -> int:
        """Width of the model's last layer."""
        return len(self.classes) if self.task == "classification" else 1

    @property
    def target(self) -> TargetTransform | None:
        """How a quantity is learned; None for classes, and where the network learns the values as they are."""
        found = self.facts.get(TARGET_FACTS, {}).get("transform")
        return None if found is None else TargetTransform.model_validate(found)


def write_prepared(
    folder: Path,
    splits: Mapping[str, Split],
    *,
    task: str,
    classes: tuple[str, ...],
    inputs: tuple[TensorSpec, ...],
    facts: Mapping[str, Any] | None = None,
) -> None:
    """Write all splits into `folder`; `dataset.json` last."""
    for name, split in splits.items():
        (folder / name).mkdir(parents=True, exist_ok=True)
        save_split(folder / name, split)
    rows = {name: len(split) for name, split in splits.items()}
    write_description(folder, rows, task=task, classes=classes, inputs=inputs, facts=facts)


def save_split(folder: Path, split: Split) -> None:
    """Write one split, also in place of one that is mapped."""
    arrays = {f"inputs.{name}": array for name, array in split.inputs.items()} | {"targets": split.targets}
    if split.weights is not None:
        arrays["weights"] = split.weights
    for name, array in arrays.items():
        np.save(folder / f"{name}.new.npy", np.ascontiguousarray(array))
        (folder / f"{name}.new.npy").replace(folder / f"{name}.npy")


def make_shards(folder: Path, rows: int, inputs: tuple[TensorSpec, ...], targets: Any) -> None:
    """The files of one split, to be filled by `fill_shards`. `targets`: their type."""
    folder.mkdir(parents=True, exist_ok=True)
    for tensor in inputs:
        shape = (rows, *tensor.item_shape)
        np.lib.format.open_memmap(folder / f"inputs.{tensor.name}.npy", "w+", tensor.dtype, shape).flush()
    np.lib.format.open_memmap(folder / "targets.npy", "w+", targets, (rows,)).flush()


def fill_shards(folder: Path, first: int, tensors: Mapping[str, np.ndarray], targets: np.ndarray) -> None:
    """Write rows into their places from `first` on; others may write other rows meanwhile. Raises DiskFullError.

    Written and not stored through a map, which faults every page, and kills the process where the disk is full.
    """
    for name, array in ({f"inputs.{name}": tensor for name, tensor in tensors.items()} | {"targets": targets}).items():
        path = folder / f"{name}.npy"
        shard = np.load(path, mmap_mode="r", allow_pickle=False)
        with disk_errors(f"Cannot write {path}", folder), path.open("r+b") as file:
            file.seek(shard.offset + first * shard.strides[0])
            file.write(np.ascontiguousarray(array, dtype=shard.dtype).data)


def write_description(
    folder: Path, rows: Mapping[str, int], *, task: str, classes: tuple[str, ...], inputs: tuple[TensorSpec, ...],
    facts: Mapping[str, Any] | None = None,
) -> None:  # fmt: skip
    """Write `dataset.json`: every shard of every split in `rows` is there and whole."""
    write_json(
        folder / DATASET,
        {
            "format_version": 1,
            "task": task,
            "classes": list(classes),
            "inputs": [tensor.model_dump(mode="json") for tensor in inputs],
            "splits": {name: {"rows": count} for name, count in rows.items()},
            "facts": dict(facts or {}),
        },
    )


def open_prepared(folder: Path) -> PreparedData:
    """Open prepared data, memory-mapped. Raises DataError when it is not complete.

    A folder that knows its store (shard_store.py) is this node's copy where the node does not see the folder.
    """
    if isinstance(folder, StoredShards):
        folder = folder.local()
    try:
        raw = json.loads((folder / DATASET).read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise DataError(
            f"Cannot open prepared data {folder}",
            found=f"it has no {DATASET}",
            remedy="Run the prepare stage again.",
        ) from None
    inputs = tuple(TensorSpec.model_validate_json(json.dumps(item)) for item in raw["inputs"])
    splits = {name: open_split(folder / name, inputs) for name in raw["splits"]}
    return PreparedData(folder, raw["task"], tuple(raw["classes"]), inputs, splits, raw["facts"])


def open_split(folder: Path, inputs: tuple[TensorSpec, ...]) -> Split:
    """The shards of one split, mapped. Raises DataError for one that is gone or damaged."""
    weights = folder / "weights.npy"
    return Split(
        {tensor.name: _map(folder / f"inputs.{tensor.name}.npy") for tensor in inputs},
        _map(folder / "targets.npy"),
        _map(weights) if weights.exists() else None,
    )


def _map(path: Path) -> np.ndarray:
    try:
        return np.load(path, mmap_mode="r", allow_pickle=False)
    except (FileNotFoundError, ValueError, EOFError) as error:
        found = "the shard is gone" if isinstance(error, FileNotFoundError) else f"the shard is damaged: {error}"
        raise DataError(
            f"Cannot open the shard {path}",
            found=found,
            rule="every file that dataset.json implies must be whole",
            remedy="Run the same command again: the prepare stage sees the change and runs anew.",
        ) from None
