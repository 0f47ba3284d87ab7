"""The rows that compression works with: calibration and gate, never the test split.

Invariant: a calibration row is never a gate row (they are different splits of the prepared data).

Covered: prepared data, plain arrays. Not covered: reading sources (trainers/data).
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np

from cluster.atomic import digest_json, hash_tree, sha256_file
from cluster.errors import DataError
from trainers.data.shards import DATASET, PreparedData, Split

MANY_ROWS = 1_000_000_000
READ = ("calibration", "gate")


@dataclass(frozen=True)
class CompressionRows:
    """What candidates are calibrated and measured on."""

    task: Literal["classification", "regression"]
    calibration: dict[str, np.ndarray]
    """name -> (N, …), memory-mapped."""
    gate: dict[str, np.ndarray]
    gate_targets: np.ndarray
    num_classes: int


def rows_of(prepared: PreparedData, *, calibration_rows: int = MANY_ROWS) -> CompressionRows:
    """The calibration and gate splits of prepared data, checked. Raises DataError."""
    calibration = _split(prepared, "calibration")
    gate = _split(prepared, "gate")
    if prepared.task == "classification":
        found = np.unique(calibration.targets)
        if len(found) < 2:
            raise DataError(
                "Cannot calibrate",
                found=f"all {len(calibration)} rows of the calibration split have the class "
                f"{prepared.classes[int(found[0])]!r}",
                rule="ranges from one class do not hold for the others",
                remedy="Make data.split.calibration larger, or give it rows of other classes.",
            )
    chosen = spread_rows(len(calibration), calibration_rows)
    return CompressionRows(
        task=prepared.task,
        calibration={name: array[chosen] for name, array in calibration.inputs.items()},
        gate=dict(gate.inputs),
        gate_targets=np.asarray(gate.targets),
        num_classes=len(prepared.classes),
    )


def rows_digest(prepared: Path) -> str:
    """Names what `rows_of` reads of a prepared folder: its description and the bytes of both splits."""
    return digest_json([sha256_file(prepared / DATASET), *(hash_tree(prepared / name) for name in READ)])


def spread_rows(rows: int, most: int) -> np.ndarray | slice:
    """Indices of at most `most` rows, evenly spread: sorted splits keep their share of every class."""
    if rows <= most:
        return slice(None)
    return np.linspace(0, rows - 1, most).astype(np.int64)


def _split(prepared: PreparedData, name: str) -> Split:
    split = prepared.splits.get(name)
    if split is None or not len(split):
        raise DataError(
            "Cannot compress the model",
            found=f"the {name} split has no rows",
            rule="quantization is calibrated on the calibration split and judged on the gate split",
            remedy=f"Set data.split.{name}, or set compress to null.",
        )
    return split
