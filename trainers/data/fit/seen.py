"""What the bundle keeps of the raw training rows: range and words of each column, and one row to ask with.

Invariant: sees training rows only, and all of them, however many; no tensor depends on it.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from cluster.bundle.transforms import Column, Texts, Values
from cluster.bundle.transforms.columns import number_text
from cluster.bundle.transforms.dates import written
from cluster.bundle.transforms.seen import SeenColumn, seen_numbers, seen_words
from cluster.errors import DataError
from trainers.data.fit.training_statistics import EXAMPLE_ROWS, Moments, Statistics
from trainers.data.read.raw import Role


def seen_columns(roles: Mapping[str, Role], training: Statistics) -> dict[str, SeenColumn]:
    """The facts of every column that is no free text."""
    found: dict[str, SeenColumn | None] = {}
    for name, role in roles.items():
        column = training.sample.values[name]
        if not isinstance(column, Texts):
            found[name] = _seen_numbers(column, None if training.whole else training.numbers[name])
        elif role == "category":
            found[name] = seen_words(column.words if training.whole else filter(None, training.words[name]))
    return {name: seen for name, seen in found.items() if seen is not None}


def _seen_numbers(column: np.ndarray, moments: Moments | None) -> SeenColumn | None:
    """`moments`: of all training rows, where the column holds a sample."""
    if moments is not None:
        return seen_numbers(moments.low, moments.high) if moments.count else None
    there = column[~np.isnan(column)]
    return seen_numbers(there.min(), there.max()) if len(there) else None


def example_row(columns: Sequence[Column], values: Mapping[str, Values]) -> dict[str, Any]:
    """One training row as JSON, in the columns' own writing."""
    num_rows = len(values[columns[0].name])
    if not num_rows:
        return {}
    holes = np.zeros(min(num_rows, EXAMPLE_ROWS), dtype=np.int64)
    for column in columns:
        read = values[column.name]
        first = read.codes[: len(holes)] < 0 if isinstance(read, Texts) else np.isnan(read[: len(holes)])
        holes += first
    row = int(holes.argmin())
    return {column.name: _sent(column, values[column.name], row) for column in columns}


def _sent(column: Column, values: Values, row: int) -> Any:
    """A value that the column's rules read as this one; None where it is missing or has no such writing."""
    if isinstance(values, Texts):
        return values.words[values.codes[row]] if values.codes[row] >= 0 else None
    number = float(values[row])
    if np.isnan(number):
        return None
    return next((each for each in _writings(column, number) if _reads_as(column, each, number)), None)


def _writings(column: Column, number: float) -> Iterable[Any]:
    if column.kind == "date":
        text = written(number, column.date)
        yield text.removesuffix("T00:00:00+00:00") if not column.date else text
        return
    yield int(number_text(number)) if number.is_integer() else number


def _reads_as(column: Column, raw: Any, number: float) -> bool:
    try:
        (found,) = np.asarray(column.from_rows([raw]))
    except DataError:
        return False
    return bool(np.isclose(found, number, rtol=1e-12, atol=1e-9))
