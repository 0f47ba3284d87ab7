"""What a scan leaves of a table's rows for the quality report, and how two such summaries become one.

Invariant: `merge` in the order of the rows gives the summary of all rows together. A table in memory is one batch,
whose summary is exact and keeps all rows as its sample; in a table that comes in batches, repeated rows are counted by
the k smallest 64-bit hashes, and `SAMPLE_ROWS` rows are kept.

Covered: counts of columns, repeated rows, rows that another table has, the sample. Not covered: findings (report.py).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np
import pyarrow as pa

from cluster.errors import DataError
from trainers.data import sketch
from trainers.data.quality.column_counts import ColumnCounts
from trainers.data.read.arrow_types import usable_table
from trainers.data.sample import Sample, row_places
from trainers.data.sketch import DistinctSketch


@dataclass(frozen=True)
class Scan:
    """What the rows of a table are scanned for."""

    target: str | None = None
    name: str = "the table"
    exact: bool = False
    """The table is one batch in memory: nothing is estimated."""
    sample_below: int | None = None
    """Rows whose place is at least this are not drawn; None: no such row is known."""
    with_features: bool = False
    """Keep the hashes of the rows without the target: a second table will be compared with them."""
    known: np.ndarray | None = None
    """Sorted hashes of the other table's rows, without its target: rows with one of them are counted."""


@dataclass
class Summary:
    """What some rows of a table leave."""

    exact: bool = False
    rows: int = 0
    columns: dict[str, ColumnCounts] = field(default_factory=dict)
    repeats: DistinctSketch = field(default_factory=lambda: DistinctSketch(sketch.ROW_HASHES))
    features: DistinctSketch = field(default_factory=lambda: DistinctSketch(sketch.ROW_HASHES))
    """Rows without the target."""
    shared: int = 0
    """Rows whose features are among `Scan.known`."""
    sample: Sample = field(default_factory=Sample)
    gone: dict[str, str] = field(default_factory=dict)
    """Columns whose type cannot be used, and why."""

    @property
    def whole(self) -> bool:
        """Whether the sample holds all rows."""
        return self.sample.rows.num_rows == self.rows

    def merge(self, other: Summary) -> None:
        """Take in the summary of the rows that follow. Raises DataError when their types do not fit."""
        for name, counts in other.columns.items():
            if name in self.columns:
                self.columns[name].merge(counts)
            else:
                self.columns[name] = counts
        self.rows += other.rows
        self.gone |= other.gone
        self.shared += other.shared
        self.repeats.merge(other.repeats)
        self.features.merge(other.features)
        self.sample.add(other.sample.rows, other.sample.numbers)

    def hints(self) -> dict[str, ColumnCounts]:
        """Empty counts that know which hashes and words of further rows would change nothing."""
        return {name: ColumnCounts(name, counts) for name, counts in self.columns.items()}

    def add(self, batch: pa.Table, first: int, scan: Scan, known: Mapping[str, ColumnCounts] | None = None) -> None:
        """Take in a batch. `first`: the number of its first row; `known`: hints. Raises DataError."""
        if scan.target is not None and scan.target not in batch.column_names:
            raise DataError(
                f"Cannot check {scan.name}", found=f"it has no column '{scan.target}'",
                rule="its columns are " + ", ".join(batch.column_names[:20]), remedy="Mend --target.",
            )  # fmt: skip
        batch, gone = usable_table(_as_plain(batch))
        self.gone |= gone
        self.rows += batch.num_rows
        features, label = np.zeros(batch.num_rows, dtype=np.uint64), np.zeros(1, dtype=np.uint64)
        for name in batch.column_names:
            if name not in self.columns:
                self.columns[name] = ColumnCounts(name, (known or {}).get(name), exact=self.exact)
            hashes = self.columns[name].add(batch.column(name))
            if name == scan.target:
                label = hashes
            else:
                features += hashes  # wraps around, and a missing value adds nothing, be its column there or not
        if self.exact:
            self.sample = Sample(batch, np.arange(batch.num_rows, dtype=np.uint64))
            return
        if scan.known is None:
            self.repeats.add(features + label)
            if scan.with_features:
                self.features.add(features)
        else:
            self.shared += int(np.isin(features, scan.known).sum())
        numbers = np.arange(first, first + batch.num_rows, dtype=np.uint64)
        if scan.sample_below is not None:
            drawn = row_places(numbers) < np.uint64(scan.sample_below)
            batch, numbers = batch.filter(pa.array(drawn)), numbers[drawn]
        self.sample.add(batch, numbers)


def _as_plain(table: pa.Table) -> pa.Table:
    """Dates and times as text, the form in which they are judged."""
    for place, column in enumerate(table.columns):
        if pa.types.is_temporal(column.type):
            table = table.set_column(place, table.column_names[place], column.cast(pa.string()))
    return table
