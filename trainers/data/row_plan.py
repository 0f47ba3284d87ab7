"""The rows of a source with their targets and splits: what is decided before anything is fitted.

    in memory      read the source -> target -> keys of all rows -> splits       one item: all rows
    past memory    scan columns -> target -> [keys of all rows] -> splits       an item for each piece of the files

Invariant: of a table in memory and of one past it the same is decided, by the same functions, and every later pass
reads `Batch`es of either. Past memory a split that orders all rows is made of their keys alone, `KEY_BYTES` a row.

Covered: tables, images, arrays; files of CSV, JSON Lines and Parquet past memory. Not covered: fitting (prepare.py).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from typing import Any

import numpy as np
import pyarrow as pa

from cluster.bundle.transforms import Texts, Values
from cluster.errors import DataError
from cluster.spec.data import SPLITS, DataSpec, FileSource
from trainers.data.executors import ONE_PROCESS, Executor
from trainers.data.fit.arrays import check_rules
from trainers.data.handoff import Handoff
from trainers.data.hashing import mix, table_keys
from trainers.data.past_memory import KEY_BYTES, Needs, asked_steps, refusal, source_files
from trainers.data.read.arrow_types import parents_of, type_notes, usable_table, with_parts
from trainers.data.read.batches import Piece, find_pieces, read_piece
from trainers.data.read.column_scan import TableScan, kept_rows, scan_piece
from trainers.data.read.delimited import settle_spec
from trainers.data.read.fetch import called_by_url
from trainers.data.read.files import digest_files
from trainers.data.read.raw import FREE, RawData, Role, TableRules, TypedRows
from trainers.data.read.sources import Inspect, read_source
from trainers.data.read.tables import check_columns, table_rules, type_rows
from trainers.data.sample import FILE_ROWS_BITS
from trainers.data.split_classes import check_split_classes
from trainers.data.splits import assign_splits, split_rows
from trainers.data.targets import Target, check_class_rows, settle_target, settle_words


@dataclass(frozen=True)
class Batch:
    """Rows with their targets and splits."""

    values: dict[str, Values]
    """As of `TypedRows`."""
    targets: np.ndarray
    """(N,) int64 class indices, or (N,) float32."""
    splits: np.ndarray
    """(N,) int8 index into SPLITS."""
    numbers: np.ndarray
    """(N,) uint64, as of `TypedRows`."""


@dataclass(frozen=True)
class Item:
    """What one call of a pass reads."""

    rows: TypedRows | Piece
    """All rows of a source in memory, or those of a piece of the files."""
    splits: np.ndarray | None = None
    """(N,) int8 of the rows that are kept; None where each one's follows from itself."""

    @property
    def in_memory(self) -> bool:
        return isinstance(self.rows, TypedRows)


@dataclass(frozen=True)
class Reader:
    """How an item's rows are read; sent to workers."""

    target: Target
    rules: TableRules | None = None
    """None: images or arrays."""
    test_file: int | None = None
    """Number of the first file that is the test split."""

    def batches(self, item: Item) -> Iterator[Batch]:
        """The rows of an item. Raises DataError."""
        first = 0
        for rows in self.typed(item.rows):
            splits = self._own_splits(rows) if item.splits is None else item.splits[first : first + len(rows)]
            first += len(rows)
            yield Batch(rows.values, self.targets(rows), splits, rows.numbers)

    def targets(self, rows: TypedRows) -> np.ndarray:
        """(N,) as of a `Batch`: those of rows in memory have been read. Raises DataError."""
        return self.target.read(rows.target) if isinstance(rows.target, Texts) else rows.target

    def typed(self, rows: TypedRows | Piece) -> Iterator[TypedRows]:
        """The rows that are kept, a batch at a time. Raises DataError."""
        if isinstance(rows, TypedRows):
            yield rows
            return
        assert self.rules is not None
        number = (rows.file << FILE_ROWS_BITS) + rows.first_row
        for batch in read_piece(rows):
            whole, _ = usable_table(batch)  # blocks of JSON may have other types of what no feature is made of
            keep, _ = kept_rows(self.rules.spec, whole)
            numbers = np.arange(number, number + whole.num_rows, dtype=np.uint64)[keep]
            number += whole.num_rows
            fixed = None
            if self.test_file is not None:
                home = SPLITS.index("test") if rows.file >= self.test_file else FREE
                fixed = np.full(len(numbers), home, dtype=np.int8)
            if len(numbers):
                yield type_rows(self.rules, whole.filter(pa.array(keep)), numbers, fixed)

    def _own_splits(self, rows: TypedRows) -> np.ndarray:
        """Splits that follow from each row itself."""
        assert self.rules is not None
        split = self.rules.spec.split
        if rows.fixed is not None and (rows.fixed != FREE).all():
            return rows.fixed
        return assign_splits(split if rows.fixed is None else split.model_copy(update={"test": 0.0}), rows.keys, None)


@dataclass(frozen=True)
class Keys:
    """What rows are divided by."""

    units: np.ndarray
    """(N,) uint64: rows with equal keys stay together."""
    targets: np.ndarray
    fixed: np.ndarray | None = None
    times: np.ndarray | None = None
    """As of `TypedRows`."""
    content: np.ndarray | None = None
    """(N,) uint64 of all features, where repeated rows are left out."""

    @staticmethod
    def joined(parts: Sequence[Keys]) -> Keys:
        """Of the rows of all parts, one after the other."""
        there = [part for part in parts if len(part.units)] or list(parts[:1])
        if not there:
            return Keys(np.zeros(0, dtype=np.uint64), np.zeros(0, dtype=np.int64))
        columns: Any = ([getattr(part, each.name) for part in there] for each in fields(Keys))
        joined: Any = (None if column[0] is None else np.concatenate(column) for column in columns)
        return Keys(*joined)


@dataclass(frozen=True)
class RowPlan:
    """The rows of a source, divided."""

    spec: DataSpec
    reader: Reader
    items: tuple[Item, ...]
    counts: np.ndarray
    """(items, splits + 1) rows; the last column: rows that no split takes."""
    class_counts: np.ndarray
    """(splits + 1, classes) rows; one column for a quantity."""
    digest: str = ""
    notes: tuple[str, ...] = ()
    raw: RawData | None = None
    """A source in memory."""

    @property
    def target(self) -> Target:
        return self.reader.target

    @property
    def rules(self) -> TableRules:
        """Of a table."""
        assert self.reader.rules is not None
        return self.reader.rules

    @property
    def roles(self) -> Mapping[str, Role]:
        return self.reader.rules.roles if self.reader.rules else {}

    @property
    def num_rows(self) -> dict[str, int]:
        """Rows of each split that has any."""
        return {name: int(rows) for name, rows in zip(SPLITS, self.counts.sum(axis=0), strict=False) if rows}

    @property
    def assigned(self) -> np.ndarray | None:
        """(N,) int8 of all rows; None where each one's follows from itself."""
        splits = [item.splits for item in self.items if item.splits is not None]
        return np.concatenate(splits) if splits else None

    @property
    def batch(self) -> Batch:
        """All rows of a source in memory."""
        (batch,) = self.reader.batches(*self.items)
        return batch

    @property
    def rows(self) -> dict[str, np.ndarray]:
        """Row indices of each split, in memory."""
        return split_rows(self.batch.splits)

    def under(self, spec: DataSpec) -> RowPlan:
        """The same rows under the section without `auto`."""
        rules = self.reader.rules.under(spec) if self.reader.rules else None
        return replace(self, spec=rules.spec if rules else spec, reader=replace(self.reader, rules=rules))


def plan_rows(spec: DataSpec, inspect: Inspect | None = None, handoff: Handoff | None = None) -> RowPlan:
    """Read a source into memory, settle its target and divide its rows; `handoff`: of a check of the same files and
    spec. Raises DataError."""
    raw = read_source(spec, inspect, rules=handoff.rules.under(spec) if handoff else None)
    if handoff and raw.digest != handoff.checked.data.source_digest:
        return plan_rows(spec, inspect)  # the files have changed since
    if raw.rules is None:
        check_rules(spec)
    target = handoff.target if handoff else settle_target(spec, raw.rows.target, len(raw.rows), raw.missing_targets)
    rows = replace(raw.rows, target=target.read(raw.rows.target))
    reader = Reader(target, raw.rules)
    divided = _divided(raw.rules.spec if raw.rules else spec, reader, [rows], ONE_PROCESS, handoff)
    return RowPlan(*divided, raw.digest, raw.notes, raw)


def plan_files(spec: DataSpec, executor: Executor, handoff: Handoff | None = None) -> RowPlan:
    """Settle a table's target and divide its rows in passes over its files; `handoff`: of a check of the same files and
    spec, which saves them. Raises DataError."""
    source = spec.source
    assert isinstance(source, FileSource)
    paths, tests = source_files(source)
    with called_by_url([*paths, *tests]):
        spec, _ = settle_spec(spec, paths[0])
        assert isinstance(spec.source, FileSource)
        pieces, digest = find_pieces([*paths, *tests], spec.source), digest_files([*paths, *tests])
        if handoff and handoff.checked.data.source_digest != digest:
            handoff = None  # the files have changed since
        if handoff:
            rules, target = handoff.rules.under(spec), handoff.target
        else:
            rules, target = _scan_columns(spec, pieces, executor)
        reader = Reader(target, rules, len(paths) if tests else None)
        return RowPlan(*_divided(rules.spec, reader, pieces, executor, handoff), digest, rules.notes)


def _divided(
    spec: DataSpec, reader: Reader, parts: Sequence[TypedRows | Piece], executor: Executor, handoff: Handoff | None
) -> tuple[DataSpec, Reader, tuple[Item, ...], np.ndarray, np.ndarray]:
    """The first fields of a plan. Raises DataError."""
    if handoff:
        counts, classes = np.array(handoff.counts), np.array(handoff.class_counts)
        return spec, reader, _items(parts, handoff.assigned, counts.sum(axis=1)), counts, classes
    by_keys = bool(asked_steps(spec, Needs.KEYS)) or isinstance(parts[0], TypedRows)
    if by_keys:
        keys = list(executor.map(scan_keys, parts, reader, spec.clean.drop_duplicates))
        assigned = assign_rows(spec, reader.target, Keys.joined(keys))
        items = _items(parts, assigned, np.array([len(part.units) for part in keys]))
        found = [count_classes(item.splits, part.targets, reader.target)
                 for item, part in zip(items, keys, strict=True)]  # fmt: skip
    else:
        items = tuple(Item(part) for part in parts)
        found = list(executor.map(count_item, items, reader))
    counts, classes = np.stack([each.sum(axis=1) for each in found]), np.sum(found, axis=0)
    if not counts[:, 0].any():
        raise _no_training_rows()
    if reader.target.classes and not by_keys:
        by_split = {name: classes[index] for index, name in enumerate(SPLITS) if classes[index].any()}
        check_split_classes(spec, by_split, reader.target.classes)
    return spec, reader, items, counts, classes


def _items(parts: Sequence[TypedRows | Piece], assigned: np.ndarray | None, sizes: np.ndarray) -> tuple[Item, ...]:
    if assigned is None:
        return tuple(Item(part) for part in parts)
    return tuple(Item(*each) for each in zip(parts, np.split(assigned, np.cumsum(sizes)[:-1]), strict=True))


def _scan_columns(spec: DataSpec, pieces: Sequence[Piece], executor: Executor) -> tuple[TableRules, Target]:
    """How rows and their target are read, by a pass over the columns."""
    origin, schema = pieces[0].source.path, pieces[0].schema
    spec = with_parts(spec, parents_of(schema)) if schema is not None else spec
    if pieces[0].names:
        check_columns(spec, list(pieces[0].names), origin)
    scan = TableScan()
    for part in executor.map(scan_piece, pieces, spec):
        scan.merge(part)
    scan.check_rows(spec, origin)
    spec = with_parts(spec, scan.parents)
    check_columns(spec, list(scan.seen), origin)
    ordering = asked_steps(spec, Needs.KEYS)
    if ordering and spec.memory_bytes and scan.rows * KEY_BYTES > spec.memory_bytes:
        found = f"ordering {scan.rows:,} rows takes about {scan.rows * KEY_BYTES >> 20:,} MiB"
        raise refusal(origin, f"{found}, and data.memory_bytes is {spec.memory_bytes >> 20:,} MiB", ordering)
    seen = scan.seen[spec.target]
    target = settle_words(spec, list(seen.words), scan.rows, seen.gone)
    return table_rules(spec, scan, origin, type_notes(schema) if schema is not None else []), target


def scan_keys(rows: TypedRows | Piece, reader: Reader, repeats: bool) -> Keys:
    """The keys of a source's or a piece's rows. Raises DataError."""

    def content(each: TypedRows) -> np.ndarray:
        return each.keys if each.groups is None else table_keys(each.values, len(each))

    return Keys.joined([
        Keys(each.keys, reader.targets(each), each.fixed, each.times, content(each) if repeats else None)
        for each in reader.typed(rows)
    ])  # fmt: skip


def count_item(item: Item, reader: Reader) -> np.ndarray:
    """(splits + 1, classes) rows of an item. Raises DataError."""
    none = np.zeros(0, dtype=np.int64)
    found = [(batch.splits, batch.targets) for batch in reader.batches(item)]
    return np.sum([count_classes(*each, reader.target) for each in [(none, none), *found]], axis=0)


def count_classes(splits: np.ndarray | None, targets: np.ndarray, target: Target) -> np.ndarray:
    """(splits + 1, classes) rows of each split, the last of none, and class; one column for a quantity."""
    assert splits is not None
    num_classes = max(1, len(target.classes))
    homes = np.where(splits < 0, len(SPLITS), splits).astype(np.int64)
    places = homes * num_classes + (targets if target.classes else 0)
    return np.bincount(places, minlength=(len(SPLITS) + 1) * num_classes).reshape(-1, num_classes)


def assign_rows(spec: DataSpec, target: Target, keys: Keys) -> np.ndarray:
    """(N,) int8 index into SPLITS of all rows. Raises DataError, also for classes that a split lacks."""
    codes, fixed = keys.targets, keys.fixed
    strata = codes if target.classes and spec.split.group is None else None  # a group has rows of several classes
    by_rank = spec.split.time is None and spec.split.column is None and not spec.split.by_hash
    if strata is not None and spec.split.stratify and by_rank:
        # rows that the source itself puts into a split need no share of the others
        others = (spec.split.validation, spec.split.calibration, spec.split.gate,
                  spec.split.test if fixed is None else 0)  # fmt: skip
        free = codes if fixed is None else codes[fixed == FREE]
        check_class_rows(free, target.classes, 1 + sum(1 for share in others if share))
    assigned = assign_splits(spec.split, keys.units, strata, fixed=fixed, times=keys.times)
    if not (assigned == 0).any():
        raise _no_training_rows()
    if target.classes:
        counts = {name: np.bincount(codes[index], minlength=len(target.classes))
                  for name, index in split_rows(assigned).items()}  # fmt: skip
        check_split_classes(
            spec, counts, target.classes, different=lambda index: len(np.unique(keys.units[codes == index])),
            mapped=target.column is not None,
        )  # fmt: skip
    return assigned if keys.content is None else _without_repeats(assigned, keys.content, codes)


def _without_repeats(assigned: np.ndarray, content: np.ndarray, targets: np.ndarray) -> np.ndarray:
    """Training rows that repeat an earlier one, target included, belong to no split: found by their sorted hashes."""
    train = np.flatnonzero(assigned == 0)
    keys = mix(content[train] ^ mix(targets[train].astype(np.float64).view(np.uint64)))
    _, first = np.unique(keys, return_index=True)
    kept = assigned.copy()
    kept[train], kept[train[first]] = FREE, 0
    return kept


def _no_training_rows() -> DataError:
    return DataError("Cannot split the data", found="no row is left for train", remedy="Lower the other shares.")
