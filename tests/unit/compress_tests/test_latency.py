"""Batches that are timed."""

from __future__ import annotations

import numpy as np

from trainers.compress.latency import tile_rows


def test_rows_are_repeated_to_fill_a_batch() -> None:
    filled = tile_rows({"x": np.arange(6).reshape(3, 2)}, 5)["x"]
    assert filled.tolist() == [[0, 1], [2, 3], [4, 5], [0, 1], [2, 3]]
