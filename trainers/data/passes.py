"""A table that is prepared past memory: passes over its files, each on an executor, in bounded memory.

    scan columns -> rules -> [keys of all rows -> splits] -> statistics of the training rows -> fit -> write shards

Invariant: the rows of each split, their order and the features are those of the table in memory, where the statistics
are exact (counts, words, mean, deviation, minimum, maximum); what needs all values at once is fitted on `SAMPLE_ROWS`
training rows: medians, quantiles, bins, fences, modes, vocabularies. A split that orders all rows (shuffled, by time)
is made of their keys alone, `KEY_BYTES` a row.

Covered: files of CSV, JSON Lines and Parquet. Not covered, and refused with a remedy: `IN_MEMORY_ONLY`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from cluster.bundle.transforms import Transforms
from cluster.errors import DataError
from cluster.spec.data import SPLITS, DataSpec, FileSource, SplitSpec
from cluster.spec.rules import SYNTHETIC
from trainers.data.executors import Executor
from trainers.data.fit.seen import example_row
from trainers.data.fit.table import fit_transforms, take_rows
from trainers.data.fit.target import target_facts
from trainers.data.fit.training_statistics import Statistics, exact_output
from trainers.data.handoff import Handoff
from trainers.data.read.arrow_types import parents_of, type_notes, usable_table, with_parts
from trainers.data.read.batches import Piece, find_pieces, read_piece, whole_bytes
from trainers.data.read.column_scan import TableScan, kept_rows, scan_piece
from trainers.data.read.columns import read_values
from trainers.data.read.delimited import settle_spec
from trainers.data.read.fetch import called_by_url, find_files
from trainers.data.read.files import digest_files
from trainers.data.read.raw import FREE, TableRules
from trainers.data.read.tables import TypedRows, check_columns, table_rules, type_rows
from trainers.data.row_plan import Target, assign_rows, settle_words
from trainers.data.sample import FILE_ROWS_BITS
from trainers.data.shards import open_split, write_description
from trainers.data.split_classes import check_split_classes
from trainers.data.splits import assign_splits

SHARE_OF_HOST = 0.5  # of this host's memory that preparing may take where the spec does not say
KEY_BYTES = 64  # of a row's key, class and time, and of what ordering them takes beside


@dataclass(frozen=True)
class Way:
    """Whether a table is prepared in memory, and why."""

    past_memory: bool
    reason: str
    fits: bool = True
    """Whether the table fits the budget: where it does, there is nothing to say."""

    @property
    def name(self) -> str:
        return "past memory" if self.past_memory else "in memory"


@dataclass(frozen=True)
class FilePlan:
    """What is known of a table past memory before anything is fitted."""

    rules: TableRules
    target: Target
    pieces: tuple[Piece, ...]
    test_file: int | None
    """Number of the first file that is the test split."""
    splits: tuple[np.ndarray | None, ...]
    """(N,) int8 of a piece's rows, where the split orders all rows; None where each row's follows from itself."""
    counts: tuple[tuple[int, ...], ...]
    """Rows of each split, a piece: from them follows where a piece's rows stand in the shards."""
    statistics: Statistics
    digest: str

    @property
    def assigned(self) -> np.ndarray | None:
        """(N,) int8 of all rows, where the split orders them."""
        return np.concatenate([each for each in self.splits if each is not None]) if self.piece_rows else None

    @property
    def piece_rows(self) -> tuple[int, ...]:
        """Rows of each piece, where the split orders all rows."""
        return tuple(len(each) for each in self.splits if each is not None)

    @property
    def rows(self) -> dict[str, int]:
        """Rows of each split that has any."""
        return {name: count for name, count in zip(SPLITS, self.statistics.splits, strict=True) if count}


@dataclass(frozen=True)
class Step:
    """A step of preparing that needs all training rows together and has no form past memory."""

    asked: Callable[[DataSpec], Any]
    remedy: str


IN_MEMORY_ONLY = (
    Step(
        lambda spec: spec.encode.category == "target",
        "target encoding is cross-fitted over all rows: choose another data.encode.category",
    ),
    Step(lambda spec: spec.select, "data.select needs all rows together: leave it out"),
    Step(
        lambda spec: spec.balance and spec.balance.method in SYNTHETIC,
        "data.balance makes rows out of all rows together: choose class_weights, over, under or sampler",
    ),
    Step(lambda spec: spec.clean.drop_duplicates, "data.clean.drop_duplicates needs all rows together: leave it out"),
)


def orders_all_rows(split: SplitSpec) -> bool:
    """Whether a row's split depends on the other rows."""
    return not (split.by_hash or split.column)


def choose_way(spec: DataSpec, host_memory_bytes: int) -> Way:
    """In memory where the table fits. Raises DataError where it does not and the spec asks for all rows together."""
    source = spec.source
    if not isinstance(source, FileSource):
        return Way(False, f"in memory: a {source.kind} source has no other way")
    paths = _paths(source)
    with called_by_url([*paths[0], *paths[1]]):
        needed = whole_bytes([*paths[0], *paths[1]], source)
    budget = spec.memory_bytes or int(SHARE_OF_HOST * host_memory_bytes)
    of = "data.memory_bytes" if spec.memory_bytes else f"{SHARE_OF_HOST:.0%} of the memory"
    sizes = f"preparing it takes about {needed >> 20:,} MiB, and {of} is {budget >> 20:,} MiB"
    if needed <= budget:
        return Way(False, f"in memory: {sizes}")
    hindrances = [step.remedy for step in IN_MEMORY_ONLY if step.asked(spec)]
    if not hindrances:
        return Way(True, f"past memory, in passes over the files: {sizes}", fits=False)
    if spec.memory_bytes is None:
        return Way(False, f"in memory, although {sizes}: {'; '.join(hindrances)}", fits=False)
    raise DataError(
        f"Cannot prepare {source.path}", found=sizes, rule="; ".join(hindrances),
        remedy="Follow these, or raise data.memory_bytes.",
    )  # fmt: skip


def plan_files(spec: DataSpec, executor: Executor, handoff: Handoff | None = None) -> FilePlan:
    """All passes that learn. `handoff`: of a check of the same files and spec, which saves some. Raises DataError."""
    source = spec.source
    assert isinstance(source, FileSource)
    paths, tests = _paths(source)
    with called_by_url([*paths, *tests]):
        spec, _ = settle_spec(spec, paths[0])
        assert isinstance(spec.source, FileSource)
        return _plan(spec, spec.source, (paths, tests), executor, handoff)


def _plan(
    spec: DataSpec, source: FileSource, files: tuple[list[Path], list[Path]], executor: Executor,
    handoff: Handoff | None,
) -> FilePlan:  # fmt: skip
    paths, tests = files
    pieces = tuple(find_pieces([*paths, *tests], source))
    if handoff is None:
        rules, target = _rules(spec, source, pieces, executor)
    else:
        rules, target = handoff.rules_of(spec), handoff.target
    test_file = len(paths) if tests else None
    splits: tuple[np.ndarray | None, ...] = (None,) * len(pieces)
    if handoff is not None and handoff.assigned is not None:
        splits = tuple(np.split(handoff.assigned, np.cumsum(handoff.piece_rows)[:-1]))
    elif orders_all_rows(spec.split):
        splits = _ordered_splits(rules, target, pieces, test_file, executor)
    whole, counts = Statistics(), []
    for statistics in executor.map(scan_rows, list(zip(pieces, splits, strict=True)), rules, target, test_file):
        counts.append(tuple(statistics.splits))
        whole.merge(statistics)
    digest = digest_files([*paths, *tests])
    if handoff is not None and digest != handoff.checked.data.source_digest:
        return _plan(spec, source, files, executor, None)  # the files have changed since: nothing of the check holds
    plan = FilePlan(rules, target, pieces, test_file, splits, tuple(counts), whole, digest)
    if "train" not in plan.rows:
        raise DataError("Cannot split the data", found="no row is left for train", remedy="Lower the other shares.")
    if target.classes and not orders_all_rows(spec.split):
        by_split = {name: np.array([whole.classes[SPLITS.index(name), index] for index in range(len(target.classes))])
                    for name in plan.rows}  # fmt: skip
        check_split_classes(rules.spec, by_split, target.classes)
    return plan


def _rules(
    spec: DataSpec, source: FileSource, pieces: Sequence[Piece], executor: Executor
) -> tuple[TableRules, Target]:
    """How rows and their target are read, by a pass over the columns."""
    schema = pieces[0].schema
    spec = with_parts(spec, parents_of(schema)) if schema is not None else spec
    if pieces[0].names:
        check_columns(spec, list(pieces[0].names), source.path)
    scan = TableScan()
    for part in executor.map(scan_piece, pieces, spec):
        scan.merge(part)
    scan.check_rows(spec, source.path)
    spec = with_parts(spec, scan.parents)
    check_columns(spec, list(scan.seen), source.path)
    if orders_all_rows(spec.split) and spec.memory_bytes and scan.rows * KEY_BYTES > spec.memory_bytes:
        raise DataError(
            f"Cannot prepare {source.path}",
            found=f"ordering {scan.rows:,} rows takes about {scan.rows * KEY_BYTES >> 20:,} MiB, and data.memory_bytes "
            f"is {spec.memory_bytes >> 20:,} MiB",
            rule="a split past memory orders the keys of all rows, or follows from each row alone",
            remedy="Set data.split.by_hash: true, or raise data.memory_bytes.",
        )
    seen = scan.seen[spec.target]
    target = settle_words(spec, list(seen.words), scan.rows, seen.gone)
    return table_rules(spec, scan, source.path, type_notes(schema) if schema is not None else []), target


def _ordered_splits(
    rules: TableRules, target: Target, pieces: Sequence[Piece], test_file: int | None, executor: Executor
) -> tuple[np.ndarray, ...]:
    """(N,) int8 splits of each piece's rows, by the keys of all rows together."""
    parts = list(executor.map(scan_keys, pieces, rules, target, test_file))
    keys, codes, fixed, times = (np.concatenate(column) for column in zip(*parts, strict=True))
    assigned = assign_rows(
        rules.spec, target, codes, keys, fixed=None if test_file is None else fixed,
        times=times if rules.time else None,
    )  # fmt: skip
    return tuple(np.split(assigned, np.cumsum([len(part[0]) for part in parts])[:-1]))


def scan_keys(
    piece: Piece, rules: TableRules, target: Target, test_file: int | None
) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """What a split that orders all rows needs of a piece: (N,) keys, targets, splits that files give, and times."""
    none = np.zeros(0, np.int64 if target.classes else np.float32)
    parts = [(np.zeros(0, np.uint64), none, np.zeros(0, np.int8), np.zeros(0))]
    for _, _, typed in typed_batches(piece, rules):
        rows = len(typed.keys)
        given = SPLITS.index("test") if test_file is not None and piece.file >= test_file else FREE
        times = np.zeros(rows) if typed.times is None else typed.times
        parts.append((typed.keys, target.read(typed.target), np.full(rows, given, dtype=np.int8), times))
    keys, codes, fixed, times = (np.concatenate(column) for column in zip(*parts, strict=True))
    return keys, codes, fixed, times


def scan_rows(
    item: tuple[Piece, np.ndarray | None], rules: TableRules, target: Target, test_file: int | None
) -> Statistics:
    """Counts of the splits and classes of a piece, and the statistics of its training rows. Raises DataError."""
    found = Statistics()
    for numbers, rows, typed, splits in split_batches(item, rules, test_file):
        for index in range(len(SPLITS)):
            found.splits[index] += int((splits == index).sum())
        if target.classes:
            pairs = np.stack([splits, target.read(typed.target)])
            pairs, counts = np.unique(pairs, axis=1, return_counts=True)
            found.classes.update({(int(s), int(c)): int(n) for (s, c), n in zip(pairs.T, counts, strict=True)})
        train = np.flatnonzero(splits == 0)
        found.add(numbers[train], rows.take(pa.array(train)), take_rows(typed.values, train))
    return found


def split_batches(
    item: tuple[Piece, np.ndarray | None], rules: TableRules, test_file: int | None
) -> Iterator[tuple[np.ndarray, pa.Table, TypedRows, np.ndarray]]:
    """(row numbers, rows as they were read, typed rows, index into SPLITS) of every batch. Raises DataError."""
    piece, given = item
    first = 0
    for numbers, rows, typed in typed_batches(piece, rules):
        if given is not None:
            splits = given[first : first + len(numbers)]
        elif test_file is not None and piece.file >= test_file:
            splits = np.full(len(numbers), SPLITS.index("test"), dtype=np.int8)
        elif typed.fixed is not None:
            splits = typed.fixed
        else:
            split = rules.spec.split if test_file is None else rules.spec.split.model_copy(update={"test": 0.0})
            splits = assign_splits(split, typed.keys, None)
        first += len(numbers)
        yield numbers, rows, typed, splits


def typed_batches(piece: Piece, rules: TableRules) -> Iterator[tuple[np.ndarray, pa.Table, TypedRows]]:
    """(row numbers, rows as they were read, typed rows) of every batch of a piece. Raises DataError."""
    number = (piece.file << FILE_ROWS_BITS) + piece.first_row
    for batch in read_piece(piece):
        whole, _ = usable_table(batch)  # blocks of JSON may have other types of what no feature is made of
        keep, _ = kept_rows(rules.spec, whole)
        numbers = np.arange(number, number + whole.num_rows, dtype=np.uint64)[keep]
        number += whole.num_rows
        if len(numbers):
            rows = whole.filter(pa.array(keep))
            yield numbers, rows, type_rows(rules, rows)


def fit(plan: FilePlan) -> tuple[Transforms, dict[str, Any]]:
    """Transforms of the training rows: fitted on their sample, then with exact statistics where there are any."""
    rules, whole = plan.rules, plan.statistics
    sample = whole.sample.rows
    typed = type_rows(rules, sample)
    table = rules.table(typed.values)
    every = take_rows(typed.values, np.arange(sample.num_rows))
    transforms, facts = fit_transforms(rules.spec, table, every, plan.target.read(typed.target), plan.target.classes)
    head = {column.name: read_values(column, whole.head.column(column.name)) for column in rules.columns}
    transforms = transforms.model_copy(update={"example": example_row(rules.columns, head)})
    if sample.num_rows < plan.rows["train"]:
        outputs = tuple(exact_output(rules.spec, output, rules.roles, whole) for output in transforms.outputs)
        transforms = transforms.model_copy(update={"outputs": outputs, "seen": whole.seen(rules.roles)})
        facts["num_features"] = {output.name: len(output.features) for output in outputs}
        facts["sampled_rows"] = sample.num_rows
    return transforms, facts


def write(folder: Path, plan: FilePlan, executor: Executor) -> tuple[Transforms, dict[str, int], dict[str, Any]]:
    """Fit, then write every piece's rows to their places in the shards, which are made first; the list last.

    Returns the transforms, the rows of each split, and facts.
    """
    transforms, facts = fit(plan)
    inputs, rows = transforms.signature(), plan.rows
    for name, count in rows.items():
        (folder / name).mkdir(parents=True, exist_ok=True)
        for tensor in inputs:
            shape = (count, *tensor.item_shape)
            np.lib.format.open_memmap(folder / name / f"inputs.{tensor.name}.npy", "w+", tensor.dtype, shape).flush()
        kind = np.int64 if plan.target.classes else np.float32
        np.lib.format.open_memmap(folder / name / "targets.npy", "w+", kind, (count,)).flush()
    starts = np.cumsum([[0] * len(SPLITS), *plan.counts], axis=0)
    items = [(piece, splits, start.tolist())
             for piece, splits, start in zip(plan.pieces, plan.splits, starts, strict=False)]  # fmt: skip
    for _ in executor.map(write_piece, items, plan.rules, plan.target, plan.test_file, transforms, str(folder)):
        pass
    if plan.rules.spec.balance is not None:
        from trainers.data.fit.balance import balance_shards

        train = open_split(folder / "train", inputs)
        rows["train"], balanced = balance_shards(plan.rules.spec.balance, folder / "train", train)
        facts |= balanced
    if not plan.target.classes:
        opened = {name: open_split(folder / name, inputs) for name in rows}
        facts |= target_facts(plan.rules.spec.target_transform, opened)
    write_description(folder, rows, task=plan.target.task, classes=plan.target.classes, inputs=inputs, facts=facts)
    return transforms, rows, facts


def write_piece(
    item: tuple[Piece, np.ndarray | None, list[int]], rules: TableRules, target: Target, test_file: int | None,
    transforms: Transforms, folder: str,
) -> int:  # fmt: skip
    """Write the rows of a piece from the item's rows of the shards on. Returns how many there were."""
    starts, written = list(item[2]), 0
    for _, _, typed, splits in split_batches(item[:2], rules, test_file):
        targets = target.read(typed.target)
        for index in np.unique(splits[splits >= 0]):
            rows = np.flatnonzero(splits == index)
            at = slice(starts[index], starts[index] + len(rows))
            home = Path(folder) / SPLITS[index]
            for name, tensor in transforms.apply(take_rows(typed.values, rows)).items():
                np.load(home / f"inputs.{name}.npy", mmap_mode="r+", allow_pickle=False)[at] = tensor
            np.load(home / "targets.npy", mmap_mode="r+", allow_pickle=False)[at] = targets[rows]
            starts[index] += len(rows)
            written += len(rows)
    return written


def _paths(source: FileSource) -> tuple[list[Path], list[Path]]:
    return find_files(source.path), find_files(source.test_path) if source.test_path else []
