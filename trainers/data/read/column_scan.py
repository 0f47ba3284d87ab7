"""Pass one over a table: what its columns are, how each is read, and which of them become features.

    batches -> scan_batch -> TableScan.merge -> feature_columns

Invariant: what a scan leaves of a batch can be merged in the batches' order, and is the same whoever read it; a table
in memory is one batch, of which all different words are kept.

Covered: inference, useless columns, rows without a target. Not covered: reading values by these rules (tables.py).
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from cluster.errors import DataError
from cluster.spec.data import DataSpec
from cluster.spec.remedy import kind_line
from trainers.data.hashing import words_keys
from trainers.data.read.arrow_types import check_usable, lists_of, parents_of, unusable
from trainers.data.read.batches import Piece, read_piece
from trainers.data.read.columns import make_column, to_texts
from trainers.data.read.infer import IDENTIFIER_WHY, Inferred, Look, decide, is_text, look_at
from trainers.data.read.missing_words import keep_line, missing_note, missing_words, said_missing
from trainers.data.read.writing import Writing
from trainers.data.sketch import COLUMN_HASHES, DistinctSketch

WORDS_MAX = 1 << 16  # different words of a column that are kept; a category with more has no use for one_hot


@dataclass
class ColumnScan:
    """What pass one knows of a column."""

    kind: pa.DataType
    missing: int = 0
    not_numbers: int = 0
    """Rows with a text that is no value where the others are numbers."""
    infinite: int = 0
    """Rows with an infinite number."""
    words: dict[str, None] = field(default_factory=dict)
    """In the order of first appearance, at most `WORDS_MAX`."""
    overflow: bool = False
    writing: Writing = field(default_factory=Writing)
    ends: tuple[Any, Any] | None = None
    """Of dates and times: the first and the last."""
    different: DistinctSketch = field(default_factory=lambda: DistinctSketch(COLUMN_HASHES))
    """Of all words."""
    parent: str = ""
    """The column of the source that it is made of."""
    list_of: str = ""
    """The list that it is an item of."""
    gone: Counter[str] = field(default_factory=Counter)
    """Texts that are read as missing, without the empty one; of the target, those of the rows that are left out."""

    def merge(self, other: ColumnScan) -> None:
        self.kind = other.kind if pa.types.is_null(self.kind) or unusable(other.kind) else self.kind
        self.missing += other.missing
        self.not_numbers += other.not_numbers
        self.infinite += other.infinite
        self.gone.update(other.gone)
        self.words |= other.words
        self.overflow = self.overflow or other.overflow or len(self.words) > WORDS_MAX
        if self.overflow:
            self.words = dict.fromkeys(list(self.words)[:WORDS_MAX])
        self.writing = self.writing.merge(other.writing)
        ends = [end for ends in (self.ends, other.ends) if ends for end in ends]
        self.ends = (min(ends), max(ends)) if ends else None
        self.different.merge(other.different)

    def infer(self, spec: DataSpec, name: str, rows: int) -> Inferred:
        """How the column is read. Raises DataError."""
        different = self.different.count() if self.overflow else 0
        return decide(spec, name, Look(self.kind, self.writing, tuple(self.words), rows - self.missing, different))


@dataclass
class TableScan:
    """What pass one knows of the rows that are kept."""

    rows: int = 0
    lost: Counter[str] = field(default_factory=Counter)
    """Column -> rows that are left out because it is missing there."""
    seen: dict[str, ColumnScan] = field(default_factory=dict)

    @property
    def lists(self) -> dict[str, str]:
        """Column that is an item of a list -> the list."""
        return {name: seen.list_of for name, seen in self.seen.items() if seen.list_of}

    @property
    def parents(self) -> dict[str, str]:
        """Column -> the column of the source that it is made of."""
        return {name: seen.parent for name, seen in self.seen.items()}

    def merge(self, other: TableScan) -> None:
        for name, seen in other.seen.items():
            if name in self.seen:
                self.seen[name].merge(seen)
            else:
                seen.missing += self.rows
                self.seen[name] = seen
        for name in self.seen.keys() - other.seen.keys():
            self.seen[name].missing += other.rows
        self.rows += other.rows
        self.lost.update(other.lost)

    def notes(self, spec: DataSpec) -> list[str]:
        """Rows that are left out, as sentences."""
        total = self.rows + self.lost.total()
        notes = [f"{lost} of {total} rows are left out: '{name}' is missing" for name, lost in self.lost.items()]
        note = missing_note(spec.target, self.seen[spec.target].gone, self.rows, is_target=True)
        return [*notes, note] if note else notes

    def check_rows(self, spec: DataSpec, origin: str) -> None:
        """Raise DataError where no row is left."""
        if self.rows:
            return
        gone = self.seen[spec.target].gone
        notes = "".join(f"; {note}" for note in self.notes(spec) if "are left out" in note)
        raise DataError(
            f"Cannot use {origin}",
            found=f"zero rows are left of {self.lost.total()}{notes}" + (f"; {said_missing(gone)}" if gone else ""),
            rule="training needs rows with a target",
            remedy="Look at data.target, data.source.missing and data.clean.drop_missing_rows."
            + (f" {keep_line(spec.target, gone)} keeps them." if gone else ""),
        )


def scan_piece(piece: Piece, spec: DataSpec) -> TableScan:
    """Pass one over a piece. Raises DataError."""
    found = TableScan()
    for batch in read_piece(piece):
        check_usable(spec, batch.schema)
        kept, lost = kept_rows(spec, batch)
        found.merge(scan_batch(spec, batch, batch.filter(pa.array(kept)), lost))
    return found


def scan_batch(spec: DataSpec, batch: pa.Table, rows: pa.Table, lost: Counter[str]) -> TableScan:
    """Pass one over a batch, of which `rows` are kept."""
    parents, lists = parents_of(batch.schema), lists_of(batch.schema)
    scan = TableScan(rows.num_rows, lost)
    for name in rows.column_names:
        scan.seen[name] = seen = _scan_column(spec, name, rows.column(name))
        seen.parent, seen.list_of = parents[name], lists.get(name, "")
        if name == spec.target or seen.missing:
            source = batch if name == spec.target else rows
            seen.gone = Counter(missing_words(make_column(spec, name), source.column(name)))
    return scan


def kept_rows(spec: DataSpec, rows: pa.Table) -> tuple[np.ndarray, Counter[str]]:
    """(N,) bool: rows with a target, and with a value where `clean.drop_missing_rows` asks for one; those that each
    column takes away."""
    keep, lost = np.ones(rows.num_rows, dtype=bool), Counter[str]()
    for name in (spec.target, *spec.clean.drop_missing_rows):
        if name not in rows.column_names:
            raise DataError("Cannot read the source", found=f"some rows have no column '{name}'", remedy="Mend them.")
        there = to_texts(make_column(spec, name), rows.column(name)).codes >= 0
        if gone := int((keep & ~there).sum()):
            lost[name] += gone
        keep &= there
    return keep, lost


def _scan_column(spec: DataSpec, name: str, values: pa.ChunkedArray) -> ColumnScan:
    look = look_at(spec, name, values)
    seen = ColumnScan(
        look.kind, len(values) - look.there, look.not_numbers, look.infinite, dict.fromkeys(look.words),
        writing=look.writing,
    )  # fmt: skip
    if look.words:
        seen.different.add(words_keys(pa.array(look.words, pa.string())))
    if pa.types.is_temporal(look.kind) and look.there:
        seen.ends = _ends(values)
    if name == spec.target and not is_text(look.kind):  # the target's classes follow from its words
        seen.words = dict.fromkeys(to_texts(make_column(spec, name), values).words)
    return seen


def _ends(values: pa.ChunkedArray) -> tuple[int, int]:
    """The first and last of times, as whole numbers: a date beyond the years of Python's may be in a dropped column."""
    if pa.types.is_dictionary(values.type):
        values = values.cast(values.type.value_type)
    kind = values.type
    if pa.types.is_timestamp(kind):
        values = values.cast(pa.timestamp("us", kind.tz), safe=False)  # files may differ in the unit
    elif pa.types.is_date32(kind) or pa.types.is_time32(kind):
        values = values.cast(pa.int32())
    ends = pc.min_max(values.cast(pa.int64()))
    return ends["min"].as_py(), ends["max"].as_py()


def feature_columns(spec: DataSpec, scan: TableScan) -> tuple[dict[str, Inferred], list[str]]:
    """How the columns that become features are read; what was inferred, and why others are left out. Raises
    DataError."""
    apart = {spec.target, *spec.drop_columns, spec.split.group, spec.split.time, spec.split.column}
    features: dict[str, Inferred] = {}
    notes, left_out = [], []
    for name, seen in scan.seen.items():
        if name in apart or spec.columns.get(name) == "drop":
            continue
        if why := unusable(seen.kind):
            left_out.append(f"column '{name}' is left out: {why}")
            continue
        inferred = seen.infer(spec, name, scan.rows)
        why = _why_useless(spec, seen, inferred, scan.rows)
        if why and name not in spec.columns:
            left_out.append(f"column '{name}' is left out: {why}")
            continue
        if inferred.role == "category" and seen.overflow and spec.encode.category != "hash":
            raise DataError(
                f"Cannot use column '{name}'", found=f"it has more than {WORDS_MAX:,} different words",
                rule="past memory the words of a category are counted one by one",
                remedy=f"Set data.encode.category: hash, or {kind_line(name, 'text')}, or drop the column.",
            )  # fmt: skip
        features[name] = inferred
        notes += [inferred.note] if inferred.note else []
        if inferred.role in ("category", "text"):
            notes += [note] if (note := missing_note(name, seen.gone, scan.rows, is_target=False)) else []
    return features, notes + left_out


def _why_useless(spec: DataSpec, seen: ColumnScan, inferred: Inferred, rows: int) -> str:
    missing = seen.missing
    if inferred.role in ("number", "date"):
        missing += seen.not_numbers + (seen.infinite if spec.clean.infinite == "missing" else 0)
    share = missing / rows
    if share == 1.0:
        return "every value is missing"
    if share > spec.max_missing:
        return f"{share:.0%} of its values are missing, data.max_missing is {spec.max_missing:.0%}"
    if share == 0.0 and _one_value(seen, inferred):
        return "all values are equal"
    return IDENTIFIER_WHY if inferred.identifier else ""


def _one_value(seen: ColumnScan, inferred: Inferred) -> bool:
    if inferred.role in ("category", "text"):
        return len(seen.words) == 1
    if seen.ends:
        return bool(seen.ends[0] == seen.ends[1])
    if seen.writing.numbers:
        return not seen.infinite and seen.writing.low == seen.writing.high
    if seen.overflow or not seen.words:
        return False
    parsed = inferred.column.from_rows(list(seen.words))
    return len(np.unique(np.asarray(parsed))) == 1
