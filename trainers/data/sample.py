"""Rows of a table drawn evenly: what stands in for all rows where a figure needs them together.

Invariant: a row is drawn by its number alone (file and row), so that the sample is the same however the rows were
divided and whoever read them; its rows keep the table's order.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field

import numpy as np
import pyarrow as pa

from cluster.errors import DataError
from trainers.data.hashing import seeded

SAMPLE_ROWS = 32_768
QUANTILE_RANK_ERROR = math.sqrt(math.log(2 / 1e-6) / (2 * SAMPLE_ROWS))  # 0.0149
SAMPLE_SPARE = 1.2  # a threshold that keeps a fifth more rows than the sample needs falls short once in 10^200 tables
FILE_ROWS_BITS = 40


@dataclass
class Sample:
    """The `SAMPLE_ROWS` rows with the smallest places."""

    rows: pa.Table = field(default_factory=lambda: pa.table({}))
    numbers: np.ndarray = field(default_factory=lambda: np.zeros(0, dtype=np.uint64))
    """(N,) uint64 of the rows: file << `FILE_ROWS_BITS`, plus the row in it."""

    def add(self, rows: pa.Table, numbers: np.ndarray) -> None:
        """Draw from rows that follow. Raises DataError where types do not fit."""
        near = nearer(numbers, self.numbers)
        if not len(near):
            return
        rows = rows if len(near) == len(numbers) else rows.take(pa.array(near))
        joined, numbers = join_rows(self.rows, decoded(rows)), np.concatenate([self.numbers, numbers[near]])
        kept = drawn(numbers)
        if len(kept) < len(numbers):
            joined, numbers = joined.take(pa.array(kept)), numbers[kept]
        self.rows, self.numbers = joined.combine_chunks(), numbers


def nearer(numbers: np.ndarray, held: np.ndarray) -> np.ndarray:
    """Which of these rows may be drawn beside those that are held: all where there is room."""
    if len(held) < SAMPLE_ROWS:
        return np.arange(len(numbers))
    return np.flatnonzero(row_places(numbers) < row_places(held).max())


def drawn(numbers: np.ndarray) -> np.ndarray:
    """Which of these rows are drawn, in their order."""
    if len(numbers) <= SAMPLE_ROWS:
        return np.arange(len(numbers))
    return np.sort(np.argpartition(row_places(numbers), SAMPLE_ROWS)[:SAMPLE_ROWS])


def row_places(numbers: np.ndarray) -> np.ndarray:
    """(N,) uint64: where each row stands in the order that the sample is drawn by."""
    return seeded(numbers, 1)


def place_limit(num_rows: list[int | None]) -> int | None:
    """Rows of this place or a later one are not drawn; None where rows are few or not counted. `num_rows`: a piece."""
    known = [count for count in num_rows if count is not None]
    if len(known) < len(num_rows) or sum(known) <= 2 * SAMPLE_ROWS:
        return None
    return int(2**64 * SAMPLE_SPARE * SAMPLE_ROWS / sum(known))


def decoded(rows: pa.Table) -> pa.Table:
    """Coded columns as texts: batches with other codes, or without any, are joined."""
    for at, column in enumerate(rows.columns):
        if pa.types.is_dictionary(column.type):
            rows = rows.set_column(at, rows.column_names[at], column.cast(column.type.value_type))
    return rows


def join_rows(a: pa.Table, b: pa.Table) -> pa.Table:
    """Rows one below the other; what a part lacks is missing. Raises DataError where types do not fit."""
    if not a.num_columns:
        return b
    try:
        return pa.concat_tables([a, b], promote_options="permissive")
    except (pa.ArrowInvalid, pa.ArrowTypeError) as error:
        raise DataError(
            "Cannot check the table", found=" ".join(str(error).split())[:300],
            rule="a column has values of one type in all rows", remedy="Mend these rows.",
        ) from None  # fmt: skip
