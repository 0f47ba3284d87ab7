"""The first two passes over a table past memory: what its columns are, then what its training rows say.

Invariant: a row's split follows from its content (or a column of the table), so that no pass needs the other rows;
what a pass leaves of a piece can be merged in the pieces' order, and is the same whoever read the piece. Exact:
counts, moments, minimum, maximum and words of the training rows. `SAMPLE_ROWS` training rows, drawn evenly, stand in
for what needs all values at once (quantiles, bins, vocabularies): ranks within `QUANTILE_RANK_ERROR`.

Covered: CSV, JSON Lines, Parquet, a test file. Not covered: fitting and writing (prepare.py).
"""

from __future__ import annotations

import math
from collections import Counter
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pyarrow as pa

from cluster.bundle.transforms import Column, Texts, Values
from cluster.bundle.transforms.seen import SeenColumn, seen_numbers, seen_words
from cluster.errors import DataError
from cluster.spec.data import SPLITS, DataSpec
from trainers.data.fit.seen import EXAMPLE_ROWS
from trainers.data.hashing import column_keys, table_keys, words_keys
from trainers.data.quality.facts import COLUMN_HASHES, DistinctSketch
from trainers.data.quality.part import FILE_ROWS_BITS, Part, join_rows
from trainers.data.read.arrow_types import check_usable, lists_of, parents_of, unusable, usable_table
from trainers.data.read.batches import Piece, read_piece
from trainers.data.read.columns import make_column, read_values, to_texts
from trainers.data.read.infer import Inferred, Look, decide, is_text, look_at
from trainers.data.read.missing_words import missing_words
from trainers.data.read.raw import Role
from trainers.data.read.tables import given_splits
from trainers.data.read.writing import Writing
from trainers.data.splits import assign_splits
from trainers.data.targets import class_labels

WORDS_MAX = 1 << 16  # different words of a column that are kept; a category with more has no use for one_hot


@dataclass
class Seen:
    """What pass one knows of a column."""

    kind: pa.DataType
    missing: int = 0
    words: dict[str, None] = field(default_factory=dict)
    """In the order of first appearance, at most `WORDS_MAX`."""
    overflow: bool = False
    writing: Writing = field(default_factory=Writing)
    different: DistinctSketch = field(default_factory=lambda: DistinctSketch(COLUMN_HASHES))
    """Of all words."""
    parent: str = ""
    """The column of the source that it is made of."""
    list_of: str = ""
    """The list that it is an item of."""
    gone: Counter[str] = field(default_factory=Counter)
    """Texts that are read as missing, without the empty one; of the target, those of the rows that are left out."""

    def merge(self, other: Seen) -> None:
        self.kind = other.kind if pa.types.is_null(self.kind) or unusable(other.kind) else self.kind
        self.missing += other.missing
        self.gone.update(other.gone)
        self.words |= other.words
        self.overflow = self.overflow or other.overflow or len(self.words) > WORDS_MAX
        if self.overflow:
            self.words = dict.fromkeys(list(self.words)[:WORDS_MAX])
        self.writing = self.writing.merge(other.writing)
        self.different.merge(other.different)


@dataclass
class Columns:
    """What pass one knows of the rows that are kept."""

    rows: int = 0
    dropped: int = 0
    seen: dict[str, Seen] = field(default_factory=dict)

    @property
    def lists(self) -> dict[str, str]:
        """Column that is an item of a list -> the list."""
        return {name: seen.list_of for name, seen in self.seen.items() if seen.list_of}

    def merge(self, other: Columns) -> None:
        for name, seen in other.seen.items():
            if name in self.seen:
                self.seen[name].merge(seen)
            else:
                seen.missing += self.rows
                self.seen[name] = seen
        for name in self.seen.keys() - other.seen.keys():
            self.seen[name].missing += other.rows
        self.rows += other.rows
        self.dropped += other.dropped


@dataclass(frozen=True)
class Layout:
    """How rows are read, divided and labelled: what pass one decided."""

    spec: DataSpec
    columns: tuple[Column, ...]
    roles: dict[str, Role]
    ignored: tuple[str, ...]
    test_file: int | None
    """Number of the first file that is the test split."""
    codes: dict[str, float]
    """Word of the target -> class index; empty for a quantity."""
    target: Column
    """How a quantity is read."""
    lists: dict[str, str] = field(default_factory=dict)
    """Column that is an item of a list -> the list."""


@dataclass
class Moments:
    """Count, mean and squared deviations of a column's training values (Chan, Golub, LeVeque 1979), and its ends."""

    count: int = 0
    missing: int = 0
    mean: float = 0.0
    squares: float = 0.0
    low: float = math.inf
    high: float = -math.inf

    def add(self, values: np.ndarray) -> None:
        there = values[~np.isnan(values)]
        other = Moments(len(there), len(values) - len(there))
        if len(there):
            other.mean = float(there.mean())
            other.squares = float(((there - other.mean) ** 2).sum())
            other.low, other.high = float(there.min()), float(there.max())
        self.merge(other)

    def merge(self, other: Moments) -> None:
        self.missing += other.missing
        if not other.count:
            return
        total, apart = self.count + other.count, other.mean - self.mean
        self.mean += apart * other.count / total
        self.squares += other.squares + apart**2 * self.count * other.count / total
        self.count = total
        self.low, self.high = min(self.low, other.low), max(self.high, other.high)


@dataclass
class Statistics:
    """What pass two knows: rows of each split and class, and the training rows' moments, words and sample."""

    splits: list[int] = field(default_factory=lambda: [0] * len(SPLITS))
    classes: Counter[tuple[int, int]] = field(default_factory=Counter)
    """(split, class index) -> rows."""
    numbers: dict[str, Moments] = field(default_factory=dict)
    words: dict[str, Counter[str | None]] = field(default_factory=dict)
    sample: Part = field(default_factory=Part)
    head: pa.Table = field(default_factory=lambda: pa.table({}))
    """The first `EXAMPLE_ROWS` training rows."""

    def merge(self, other: Statistics) -> None:
        self.splits = [a + b for a, b in zip(self.splits, other.splits, strict=True)]
        self.classes.update(other.classes)
        for name, moments in other.numbers.items():
            self.numbers.setdefault(name, Moments()).merge(moments)
        for name, words in other.words.items():
            self.words.setdefault(name, Counter()).update(words)
        self.sample.draw(other.sample.sample, other.sample.numbers)
        self.begin(other.head)

    def begin(self, rows: pa.Table) -> None:
        """Training rows that follow those of before."""
        wanted = min(EXAMPLE_ROWS - self.head.num_rows, rows.num_rows)
        if wanted > 0:
            self.head = join_rows(self.head, rows.slice(0, wanted)).combine_chunks()

    def seen(self, roles: dict[str, Role]) -> dict[str, SeenColumn]:
        """As fit/seen.py, of all training rows."""
        found: dict[str, SeenColumn | None] = {}
        for name, role in roles.items():
            if role in ("number", "date"):
                found[name] = seen_numbers(self.numbers[name].low, self.numbers[name].high)
            elif role == "category":
                found[name] = seen_words(word for word in self.words[name] if word is not None)
        return {name: seen for name, seen in found.items() if seen is not None}


def scan_columns(piece: Piece, spec: DataSpec) -> Columns:
    """Pass one over a piece. Raises DataError."""
    found = Columns()
    for batch in read_piece(piece):
        check_usable(spec, batch.schema)
        parents, lists = parents_of(batch.schema), lists_of(batch.schema)
        part = Columns()
        rows = batch.filter(pa.array(_kept(spec, batch)))
        part.rows, part.dropped = rows.num_rows, batch.num_rows - rows.num_rows
        for name in rows.column_names:
            part.seen[name] = seen = _look(spec, name, rows.column(name))
            seen.parent, seen.list_of = parents[name], lists.get(name, "")
            said = batch if name == spec.target else rows
            if said is batch or seen.missing:
                seen.gone = Counter(missing_words(make_column(spec, name), said.column(name)))
        found.merge(part)
    return found


def scan_rows(piece: Piece, layout: Layout) -> Statistics:
    """Pass two over a piece. Raises DataError."""
    found = Statistics()
    for first, rows, values, splits, targets in typed_batches(piece, layout):
        for index in range(len(SPLITS)):
            found.splits[index] += int((splits == index).sum())
        if layout.codes:
            pairs, counts = np.unique(np.stack([splits, targets.astype(np.int64)]), axis=1, return_counts=True)
            found.classes.update({(int(s), int(c)): int(n) for (s, c), n in zip(pairs.T, counts, strict=True)})
        train = np.flatnonzero(splits == 0)
        for name, column in values.items():
            if isinstance(column, Texts):
                counts = np.bincount(column.codes[train] + 1, minlength=len(column.words) + 1)
                words = (None, *column.words)
                counted = {words[at]: int(counts[at]) for at in np.flatnonzero(counts)}
                found.words.setdefault(name, Counter()).update(counted)
            else:
                found.numbers.setdefault(name, Moments()).add(column[train])
        training = rows.take(pa.array(train))
        found.sample.draw(training, first[train])
        found.begin(training)
    return found


def typed_batches(piece: Piece, layout: Layout) -> Any:
    """(row numbers, raw rows, values by column, split index, targets) of every batch of a piece. Raises DataError."""
    spec, number = layout.spec, (piece.file << FILE_ROWS_BITS) + piece.first_row
    for batch in read_piece(piece):
        whole, _ = usable_table(batch)  # blocks of JSON may have other types of what no feature is made of
        keep = _kept(spec, whole)
        numbers = np.arange(number, number + whole.num_rows, dtype=np.uint64)[keep]
        number += whole.num_rows
        rows = whole.filter(pa.array(keep))
        if not rows.num_rows:
            continue
        values = {column.name: read_values(column, _column(rows, column.name)) for column in layout.columns}
        yield numbers, rows, values, _splits(layout, piece, rows, values), read_targets(layout, rows)


def read_targets(layout: Layout, rows: pa.Table) -> np.ndarray:
    """(N,) int64 class indices, or float64 values."""
    column = make_column(layout.spec, layout.spec.target)
    texts = to_texts(column, rows.column(layout.spec.target))
    if layout.codes:
        return np.array([layout.codes[word] for word in texts.words], dtype=np.int64)[texts.codes]
    return np.array([_quantity(layout.target, word) for word in texts.words])[texts.codes]


def _quantity(column: Column, word: str) -> float:
    try:
        return column.number_of(word)
    except ValueError:
        raise DataError(
            f"Cannot use '{column.name}' as the target", found=f"it holds {word!r} beside numbers",
            rule="a quantity is a number in every row",
            remedy="Mend these rows, or map the word to a missing value with data.clean.map_values.",
        ) from None  # fmt: skip


def label_codes(words: list[str], values: np.ndarray, classes: tuple[str, ...]) -> dict[str, float]:
    """Word of the target -> class index. `values`: what each word is, a number or the word itself."""
    return {word: classes.index(label) for word, label in zip(words, class_labels(values).tolist(), strict=True)}


def infer_seen(spec: DataSpec, name: str, seen: Seen, rows: int) -> Inferred:
    """As infer.infer_column, from what pass one kept. Raises DataError."""
    different = seen.different.count() if seen.overflow else len(seen.words)
    return decide(spec, name, Look(seen.kind, seen.writing, tuple(seen.words), rows - seen.missing, different))


def _look(spec: DataSpec, name: str, values: pa.ChunkedArray) -> Seen:
    look = look_at(spec, name, values)
    seen = Seen(look.kind, len(values) - look.there, dict.fromkeys(look.words), writing=look.writing)
    if look.words:
        seen.different.add(words_keys(pa.array(look.words, pa.string())))
    if name == spec.target and not is_text(look.kind):  # of the target the words are asked for
        texts = to_texts(make_column(spec, name), values)
        seen.words = dict.fromkeys(texts.words)
    return seen


def _kept(spec: DataSpec, rows: pa.Table) -> np.ndarray:
    """(N,) bool: rows with a target, and with a value where `clean.drop_missing_rows` asks for one."""
    keep = np.ones(rows.num_rows, dtype=bool)
    for name in (spec.target, *spec.clean.drop_missing_rows):
        if name not in rows.column_names:
            raise DataError("Cannot read the source", found=f"some rows have no column '{name}'", remedy="Mend them.")
        keep &= to_texts(make_column(spec, name), rows.column(name)).codes >= 0
    return keep


def _column(rows: pa.Table, name: str) -> pa.ChunkedArray:
    """A column of the batch; JSON lines may lack it."""
    return rows.column(name) if name in rows.column_names else pa.chunked_array([pa.nulls(len(rows), pa.string())])


def _splits(layout: Layout, piece: Piece, rows: pa.Table, values: dict[str, Values]) -> np.ndarray:
    """(N,) int8 index into SPLITS, by each row's own content."""
    split = layout.spec.split
    if layout.test_file is not None and piece.file >= layout.test_file:
        return np.full(len(rows), SPLITS.index("test"), dtype=np.int8)
    if split.column:
        return given_splits(layout.spec, split.column, rows)
    if split.group:
        keys = column_keys(to_texts(make_column(layout.spec, split.group), rows.column(split.group)))
    else:
        keys = table_keys(values, len(rows))
    if layout.test_file is not None:
        split = split.model_copy(update={"test": 0.0})
    return assign_splits(split, keys, None)
