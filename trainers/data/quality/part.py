"""What some rows of a table leave for the quality report, and how two such parts become one.

Invariant: `Part.merge` in the order of the rows gives the part of all rows together; the sample is drawn by the rows'
numbers alone, so that it is the same however the rows were divided.

Covered: facts of columns, repeated rows, rows that another file has, the sample. Not covered: findings
(merge.py), reading (stream.py).
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field

import numpy as np
import pyarrow as pa

from cluster.errors import DataError
from trainers.data.hashing import seeded
from trainers.data.quality.facts import ColumnFacts, DistinctSketch

SAMPLE_ROWS = 32_768
QUANTILE_RANK_ERROR = math.sqrt(math.log(2 / 1e-6) / (2 * SAMPLE_ROWS))  # 0.0149
ROW_HASHES = 1 << 23  # 64 MiB
FILE_ROWS_BITS = 40


@dataclass(frozen=True)
class Ask:
    """What every part of a table is looked at for."""

    target: str | None = None
    name: str = "the table"
    sample_below: int | None = None
    """Rows whose place is at least this are not drawn; None: no such row is known."""
    with_features: bool = False
    """Keep the hashes of the rows without the target: a second file will be compared with them."""
    known: np.ndarray | None = None
    """Sorted hashes of the other file's rows, without its target: rows with one of them are counted."""


@dataclass
class Part:
    """What some rows of a table leave."""

    rows: int = 0
    columns: dict[str, ColumnFacts] = field(default_factory=dict)
    repeats: DistinctSketch = field(default_factory=lambda: DistinctSketch(ROW_HASHES))
    features: DistinctSketch = field(default_factory=lambda: DistinctSketch(ROW_HASHES))
    """Rows without the target."""
    shared: int = 0
    """Rows whose features are among `Ask.known`."""
    sample: pa.Table = field(default_factory=lambda: pa.table({}))
    gone: dict[str, str] = field(default_factory=dict)
    """Columns whose type cannot be used, and why."""
    numbers: np.ndarray = field(default_factory=lambda: np.zeros(0, dtype=np.uint64))
    """Of the sample's rows: file << `FILE_ROWS_BITS`, plus the row in it."""

    def merge(self, other: Part) -> None:
        """Take in the part of the rows that follow. Raises DataError when their types do not fit."""
        for name, facts in other.columns.items():
            if name in self.columns:
                self.columns[name].merge(facts)
            else:
                self.columns[name] = facts
        self.rows += other.rows
        self.gone |= other.gone
        self.shared += other.shared
        self.repeats.merge(other.repeats)
        self.features.merge(other.features)
        self.draw(other.sample, other.numbers)

    def hints(self) -> dict[str, ColumnFacts]:
        """Empty facts that know which hashes and words of further rows would change nothing."""
        return {name: ColumnFacts(name, facts) for name, facts in self.columns.items()}

    def draw(self, rows: pa.Table, numbers: np.ndarray) -> None:
        """Keep the `SAMPLE_ROWS` rows with the smallest places, in the table's order."""
        if len(self.numbers) >= SAMPLE_ROWS:
            keep = place(numbers) < place(self.numbers).max()
            rows, numbers = rows.filter(pa.array(keep)), numbers[keep]
        if not len(numbers):
            return
        joined = join_rows(self.sample, rows)
        numbers = np.concatenate([self.numbers, numbers])
        if len(numbers) > SAMPLE_ROWS:
            kept = np.sort(np.argpartition(place(numbers), SAMPLE_ROWS)[:SAMPLE_ROWS])
            joined, numbers = joined.take(pa.array(kept)), numbers[kept]
        self.sample, self.numbers = joined.combine_chunks(), numbers


def place(numbers: np.ndarray) -> np.ndarray:
    """(N,) uint64: where each row stands in the order that the sample is drawn by."""
    return seeded(numbers, 1)


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
