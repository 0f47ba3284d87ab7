"""What is measured of a candidate, beside its time."""

from __future__ import annotations

import numpy as np

from trainers.compress.measure import worst_class_drop
from trainers.compress.rows import CompressionRows


def test_a_class_must_lose_more_than_two_rows_to_count() -> None:
    targets = np.repeat([0, 1], [4, 40])
    right = np.eye(2, dtype=np.float32)[targets]
    rows = CompressionRows("classification", {}, {}, targets, 2)
    two_lost = right.copy()
    two_lost[:2] = two_lost[:2, ::-1]
    assert worst_class_drop(right, two_lost, rows) == 0.0
    three_lost = right.copy()
    three_lost[:3] = three_lost[:3, ::-1]
    assert worst_class_drop(right, three_lost, rows) == 0.75
