"""Whole numbers that name something (a user, a film, a shop) and say nothing by their size.

    own     how much of the target the other rows of the same value tell
    near    how much the rows of the neighboring values tell

Of a quantity both tell alike; of a name only its own rows do.

Invariant: the answer depends on the rows' values alone, never on a column's name or on where rows stand in the file; a
row is judged by rows of the other half.

Covered: whole numbers that repeat, for classes and quantities. Not covered: names of one row each (rules.py), numbers
that tell nothing of the target.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from cluster.spec.data import EncodeSpec
from cluster.spec.remedy import kind_line
from trainers.data.quality.findings import Finding

ROWS_MIN = 500
ROWS_MAX = 50_000
VALUES_MIN = 10  # of fewer values trees and bins make classes anyway
REPEATS_MIN = 2.0  # rows of a value on average
SHARE_MAX = 0.5  # of rows with one value: beyond it the column is an amount that mostly is 0
NEIGHBORS = 2  # values on each side
SMOOTHING_ROWS = 5.0  # of the overall mean, added to each value's rows
OWN_MIN = 0.02  # share of the target's variance that is worth a finding
NEAR_SHARE_MAX = 0.5  # of what a value's own rows tell; above it the size says much of it too


def named_numbers(goal: np.ndarray, columns: Mapping[str, np.ndarray]) -> list[Finding]:
    """`goal`: (N, G) float64, a quantity or a column a class, NaN where missing; `columns`: (N,) whole numbers. Rows
    come in an order that follows from their content."""
    found = []
    for name, values in columns.items():
        there = np.flatnonzero(np.isfinite(values) & ~np.isnan(goal[:, 0]))
        different, codes = np.unique(values[there], return_inverse=True)
        if len(there) < ROWS_MIN or not VALUES_MIN <= len(different) <= len(there) / REPEATS_MIN:
            continue
        if np.bincount(codes).max() > SHARE_MAX * len(there):
            continue
        own, near = told(codes, len(different), goal[there])
        if own >= OWN_MIN and near <= NEAR_SHARE_MAX * own:
            found.append(_finding(name, len(different), own, near))
    return found


def told(codes: np.ndarray, num_values: int, goal: np.ndarray) -> tuple[float, float]:
    """Shares of the target's variance that a value's own rows, and those of its neighbors, tell of the other half."""
    errors, spread = np.zeros(2), 0.0
    half = np.arange(len(codes)) % 2
    for held in (0, 1):
        known, asked = half != held, half == held
        mean = goal[known].mean(axis=0)
        rows = np.bincount(codes[known], minlength=num_values).astype(np.float64)[:, None]
        sums = np.stack([np.bincount(codes[known], column, num_values) for column in goal[known].T], axis=1)
        pair = ((sums, rows), (_of_neighbors(sums), _of_neighbors(rows)))
        for index, (total, count) in enumerate(pair):
            guess = (total + SMOOTHING_ROWS * mean) / (count + SMOOTHING_ROWS)
            errors[index] += ((goal[asked] - guess[codes[asked]]) ** 2).sum()
        spread += float(((goal[asked] - mean) ** 2).sum())
    own, near = np.maximum(0.0, 1.0 - errors / max(spread, np.finfo(np.float64).tiny))
    return float(own), float(near)


def _of_neighbors(sums: np.ndarray) -> np.ndarray:
    """(K, G) sums of the values on both sides, without the value's own."""
    total = np.zeros_like(sums)
    for step in range(1, min(NEIGHBORS, len(sums) - 1) + 1):
        total[step:] += sums[:-step]
        total[:-step] += sums[step:]
    return total


def _finding(name: str, different: int, own: float, near: float) -> Finding:
    text = (
        f"its {different:,} different numbers tell as names do: rows of the same number tell {own:.1%} of the target, "
        f"rows of the neighboring numbers {near:.1%}"
    )
    fix = kind_line(name, "category")
    if different > EncodeSpec().max_categories:
        fix += " and data.encode.category: target"
    return Finding("codes", "warning", name, text, fix, {"different": different, "own": own, "near": near})
