"""Rows for calibration and gate: checked, spread."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from cluster.bundle.signature import TensorSpec
from cluster.errors import DataError
from trainers.compress.rows import rows_of, spread_rows
from trainers.data.shards import PreparedData, Split


def prepared(calibration: list[int], gate: list[int]) -> PreparedData:
    def split(labels: list[int]) -> Split:
        return Split({"x": np.zeros((len(labels), 2), np.float32)}, np.array(labels, np.int64))

    tensor = TensorSpec(name="x", datatype="FP32", shape=(-1, 2))
    splits = {"calibration": split(calibration), "gate": split(gate)}
    return PreparedData(Path("nowhere"), "classification", ("a", "b"), (tensor,), splits, {})


def test_no_calibration_rows_and_one_class_are_refused() -> None:
    with pytest.raises(DataError, match="calibration split has no rows"):
        rows_of(prepared([], [0, 1]))
    with pytest.raises(DataError, match="gate split has no rows"):
        rows_of(prepared([0, 1], []))
    with pytest.raises(DataError, match="have the class 'b'"):
        rows_of(prepared([1, 1, 1], [0, 1]))


def test_rows_are_spread_over_a_sorted_split() -> None:
    chosen = spread_rows(100, 5)
    assert isinstance(chosen, np.ndarray)
    assert chosen.tolist() == [0, 24, 49, 74, 99]
    assert spread_rows(5, 100) == slice(None)
