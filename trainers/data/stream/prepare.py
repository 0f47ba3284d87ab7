"""Preparing a table past memory: two passes to learn (scan.py), one to write shards, in bounded memory.

Invariant: the shards are those of the way in memory on the same file: the same rows in the same order, and the same
features where the statistics are exact (counts, words, mean, deviation, minimum, maximum). What needs all values at
once is fitted on `SAMPLE_ROWS` training rows: medians, quantiles, bins, fences, modes, vocabularies.

Covered: files of CSV, JSON Lines and Parquet, splits by hash, group or column. Not covered, and refused: what needs
all rows together (shuffled or time-ordered splits, target encoding, selection, balancing, dropping duplicates).
"""

from __future__ import annotations

import os
from collections import Counter, deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Literal

import numpy as np

from cluster.bundle.transforms import Block, Column, Output, Transforms
from cluster.bundle.transforms.steps import Clip, Impute, MissingIndicator, OneHot, Ordinal, Scale
from cluster.errors import DataError
from cluster.spec.data import SPLITS, DataSpec, FileSource
from trainers.data import targets as target_rules
from trainers.data.fit.seen import example_row
from trainers.data.fit.table import FEATURES, fit_transforms, take_rows
from trainers.data.fit.target import target_facts
from trainers.data.read.arrow_types import parents_of, type_notes, with_parts
from trainers.data.read.batches import Piece, find_pieces, whole_bytes
from trainers.data.read.columns import make_column, read_values
from trainers.data.read.delimited import settle_spec
from trainers.data.read.fetch import called_by_url, find_files
from trainers.data.read.files import digest_files
from trainers.data.read.infer import target_column
from trainers.data.read.missing_words import keep_line, said_missing
from trainers.data.read.raw import Role, Table
from trainers.data.read.tables import check_columns
from trainers.data.shards import open_split, write_description
from trainers.data.split_classes import check_split_classes
from trainers.data.stream.columns import feature_columns
from trainers.data.stream.scan import (
    Columns,
    Layout,
    Moments,
    Seen,
    Statistics,
    label_codes,
    read_targets,
    scan_columns,
    scan_rows,
    typed_batches,
)

Run = Callable[..., Iterator[Any]]
"""`run(function, items, *arguments)` yields the function's result of each item, in order."""
SHARE_OF_HOST = 0.5  # of this host's memory that preparing may take where the spec does not say
WORKERS_MAX = 4


@dataclass(frozen=True)
class Way:
    """Whether a table is prepared in memory, and why."""

    past_memory: bool
    reason: str
    fits: bool = True
    """Whether the table fits the budget: where it does, there is nothing to say."""


@dataclass(frozen=True)
class Scanned:
    """What both passes learned."""

    layout: Layout
    pieces: tuple[Piece, ...]
    counts: tuple[tuple[int, ...], ...]
    """Rows of each split, a piece: from them follows where a piece's rows stand in the shards."""
    whole: Statistics
    task: Literal["classification", "regression"]
    classes: tuple[str, ...]
    digest: str
    notes: tuple[str, ...]
    task_reason: str = ""

    @property
    def rows(self) -> dict[str, int]:
        """Rows of each split that has any."""
        return {name: count for name, count in zip(SPLITS, self.whole.splits, strict=True) if count}


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
    hindrances = _hindrances(spec)
    if not hindrances:
        return Way(True, f"past memory, in passes over the files: {sizes}", fits=False)
    if spec.memory_bytes is None:
        return Way(False, f"in memory, although {sizes}: {'; '.join(hindrances)}", fits=False)
    raise DataError(
        f"Cannot prepare {source.path}", found=sizes, rule="; ".join(hindrances),
        remedy="Follow these, or raise data.memory_bytes.",
    )  # fmt: skip


def _hindrances(spec: DataSpec) -> list[str]:
    """What the spec asks for that needs all rows together, each with its remedy."""
    found = []
    if not (spec.split.by_hash or spec.split.column):
        found.append("a split past memory follows from each row alone: set data.split.by_hash: true")
    if spec.encode.category == "target":
        found.append("target encoding is cross-fitted over all rows: choose another data.encode.category")
    for name, asked in (("select", spec.select), ("balance", spec.balance),
                        ("clean.drop_duplicates", spec.clean.drop_duplicates)):  # fmt: skip
        if asked:
            found.append(f"data.{name} needs all rows together: leave it out")
    return found


def scan(spec: DataSpec, run: Run) -> Scanned:
    """Both passes. Raises DataError."""
    source = spec.source
    assert isinstance(source, FileSource)
    paths, tests = _paths(source)
    with called_by_url([*paths, *tests]):
        spec, _ = settle_spec(spec, paths[0])
        assert isinstance(spec.source, FileSource)
        return _scan(spec, spec.source, paths, tests, run)


def _scan(spec: DataSpec, source: FileSource, paths: list[Path], tests: list[Path], run: Run) -> Scanned:
    pieces = find_pieces([*paths, *tests], source)
    schema = pieces[0].schema
    spec = with_parts(spec, parents_of(schema)) if schema is not None else spec
    if pieces[0].names:
        check_columns(spec, list(pieces[0].names), source.path)
    columns = Columns()
    for part in run(scan_columns, pieces, spec):
        columns.merge(part)
    if not columns.rows:
        raise _no_rows(spec, source, columns)
    spec = with_parts(spec, {name: seen.parent for name, seen in columns.seen.items()})
    check_columns(spec, list(columns.seen), source.path)
    task, classes, codes, target = _labels(spec, columns.seen[spec.target], columns.rows)
    found, notes = feature_columns(spec, columns)
    roles = {name: inferred.role for name, inferred in found.items()}
    if not roles:
        raise DataError(f"Cannot use {source.path}", found="no feature column is left", remedy="; ".join(notes))
    rules = tuple(inferred.column for inferred in found.values())
    ignored = tuple(name for name in columns.seen if name not in roles)
    layout = Layout(spec, rules, roles, ignored, len(paths) if tests else None, codes, target, columns.lists)
    notes += type_notes(schema) if schema is not None else []
    whole, counts = Statistics(), []
    for statistics in run(scan_rows, pieces, layout):
        counts.append(tuple(statistics.splits))
        whole.merge(statistics)
    digest = digest_files([*paths, *tests])
    words = list(columns.seen[spec.target].words)
    column = target_column(spec, words)
    numbers = None if column is None else column.numbers_of(words)
    reason = target_rules.task_reason(np.array(words, dtype=object) if numbers is None else numbers, task)
    scanned = Scanned(layout, tuple(pieces), tuple(counts), whole, task, classes, digest, tuple(notes), reason)
    if "train" not in scanned.rows:
        raise DataError("Cannot split the data", found="no row is left for train", remedy="Lower the other shares.")
    if classes:
        by_split = {name: np.array([whole.classes[SPLITS.index(name), index] for index in range(len(classes))])
                  for name in scanned.rows}  # fmt: skip
        check_split_classes(spec, by_split, classes)
    return scanned


def _no_rows(spec: DataSpec, source: FileSource, columns: Columns) -> DataError:
    gone = columns.seen[spec.target].gone
    return DataError(
        f"Cannot use {source.path}",
        found=f"zero rows are left of {columns.dropped}" + (f"; {said_missing(gone)}" if gone else ""),
        rule="training needs rows with a target",
        remedy="Look at data.target." + (f" {keep_line(spec.target, gone)} keeps them." if gone else ""),
    )


def fit(scanned: Scanned) -> tuple[Transforms, dict[str, Any]]:
    """Transforms of the training rows: fitted on their sample, then with exact statistics where there are any."""
    layout, whole = scanned.layout, scanned.whole
    sample = whole.sample.sample
    values = {rule.name: read_values(rule, sample.column(rule.name)) for rule in layout.columns}
    table = Table(layout.columns, values, layout.roles, layout.ignored, layout.lists)
    every = take_rows(values, np.arange(sample.num_rows))
    targets = read_targets(layout, sample)
    if scanned.task == "regression":
        targets = targets.astype(np.float32)
    transforms, facts = fit_transforms(layout.spec, table, every, targets, scanned.classes)
    head = {rule.name: read_values(rule, whole.head.column(rule.name)) for rule in layout.columns}
    transforms = transforms.model_copy(update={"example": example_row(layout.columns, head)})
    if sample.num_rows < scanned.rows["train"]:
        outputs = tuple(_exact(layout.spec, output, layout.roles, whole) for output in transforms.outputs)
        transforms = transforms.model_copy(update={"outputs": outputs, "seen": whole.seen(layout.roles)})
        facts["num_features"] = {output.name: len(output.features) for output in outputs}
        facts["sampled_rows"] = sample.num_rows
    return transforms, facts


def write(folder: Path, scanned: Scanned, run: Run) -> tuple[Transforms, dict[str, Any]]:
    """Fit, then write every piece's rows to their places in the shards, which are made first; the list last."""
    transforms, facts = fit(scanned)
    inputs, rows = transforms.signature(), scanned.rows
    for name, count in rows.items():
        (folder / name).mkdir(parents=True, exist_ok=True)
        for tensor in inputs:
            shape = (count, *tensor.item_shape)
            np.lib.format.open_memmap(folder / name / f"inputs.{tensor.name}.npy", "w+", tensor.dtype, shape).flush()
        kind = np.int64 if scanned.task == "classification" else np.float32
        np.lib.format.open_memmap(folder / name / "targets.npy", "w+", kind, (count,)).flush()
    starts = np.cumsum([[0] * len(SPLITS), *scanned.counts], axis=0)
    places = [(piece, start.tolist()) for piece, start in zip(scanned.pieces, starts, strict=False)]
    for _ in run(write_piece, places, scanned.layout, transforms, str(folder)):
        pass
    if scanned.task == "regression":
        splits = {name: open_split(folder / name, inputs) for name in rows}
        facts |= target_facts(scanned.layout.spec.target_transform, splits)
    write_description(folder, rows, task=scanned.task, classes=scanned.classes, inputs=inputs, facts=facts)
    return transforms, facts


def write_piece(place: tuple[Piece, list[int]], layout: Layout, transforms: Transforms, folder: str) -> int:
    """Write the rows of a piece from `place`'s rows of the shards on. Returns how many there were."""
    piece, starts = place[0], list(place[1])
    written = 0
    for _, _, values, splits, targets in typed_batches(piece, layout):
        for index in np.unique(splits[splits >= 0]):
            rows = np.flatnonzero(splits == index)
            at = slice(starts[index], starts[index] + len(rows))
            home = Path(folder) / SPLITS[index]
            for name, tensor in transforms.apply(take_rows(values, rows)).items():
                np.load(home / f"inputs.{name}.npy", mmap_mode="r+", allow_pickle=False)[at] = tensor
            np.load(home / "targets.npy", mmap_mode="r+", allow_pickle=False)[at] = targets[rows]
            starts[index] += len(rows)
            written += len(rows)
    return written


def in_threads(function: Callable[..., Any], items: Sequence[Any], *arguments: Any) -> Iterator[Any]:
    """`Run` in this process; a few items are in flight."""
    workers = max(1, min(WORKERS_MAX, len(os.sched_getaffinity(0))))
    with ThreadPoolExecutor(workers, thread_name_prefix="prepare") as pool:
        waiting: deque[Any] = deque()
        try:
            for item in items:
                waiting.append(pool.submit(partial(function, item, *arguments)))
                if len(waiting) > workers:
                    yield waiting.popleft().result()
            while waiting:
                yield waiting.popleft().result()
        finally:
            for future in waiting:
                future.cancel()


def _paths(source: FileSource) -> tuple[list[Path], list[Path]]:
    return find_files(source.path), find_files(source.test_path) if source.test_path else []


def _labels(
    spec: DataSpec, seen: Seen, rows: int
) -> tuple[Literal["classification", "regression"], tuple[str, ...], dict[str, float], Column]:
    """The task, the classes with the words of each, and how a quantity is read. Raises DataError."""
    words = list(seen.words)
    column = target_column(spec, words)
    numbers = None if column is None else column.numbers_of(words)
    values = np.array(words, dtype=object) if numbers is None else numbers
    task = target_rules.infer_task(values, spec.task)
    if task == "regression":
        target_rules.check_regression(values, spec.target)
        assert column is not None, "check_regression and infer_task refuse words"
        return task, (), {}, column
    labels = sorted(set(target_rules.class_labels(values).tolist()))
    if len(labels) == 1:
        raise target_rules.one_class(spec.target, labels[0], rows, seen.gone)
    if len(labels) > target_rules.CLASSES_MAX:
        raise DataError(
            f"Cannot use '{spec.target}' as the target", found=f"it has {len(labels)} different values",
            rule=f"a target has 2 to {target_rules.CLASSES_MAX:,} classes", remedy="Choose another data.target.",
        )  # fmt: skip
    classes = tuple(target_rules.ordered_classes(labels))
    return task, classes, label_codes(words, values, classes), column or make_column(spec, spec.target)


def _exact(spec: DataSpec, output: Output, roles: dict[str, Role], whole: Statistics) -> Output:
    """The output with what is known exactly in place of what the sample says."""
    blocks = []
    for block in output.blocks:
        name = block.columns[0]
        if roles[name] == "category":
            blocks.append(_category(spec, block, whole.words[name]))
        elif not isinstance(block.steps[0], MissingIndicator):
            blocks.append(_numbers(spec, block, whole.numbers) if roles[name] in ("number", "date") else block)
    numbers = [name for block in output.blocks for name in block.columns if roles[name] in ("number", "date")]
    holes = tuple(name for name in dict.fromkeys(numbers) if whole.numbers[name].missing)
    if (
        spec.clean.missing_indicators
        and output.name == FEATURES
        and holes
        and any(roles[block.columns[0]] in ("number", "date") for block in blocks)
    ):
        place = sum(roles[block.columns[0]] in ("number", "date") for block in blocks)
        features = tuple(f"{name} is missing" for name in holes)
        blocks.insert(place, Block(columns=holes, steps=(MissingIndicator(),), features=features))
    return output.model_copy(update={"blocks": tuple(blocks)})


def _category(spec: DataSpec, block: Block, counts: Counter[str | None]) -> Block:
    """The same block by the words of all training rows."""
    name, words = block.columns[0], {word: count for word, count in counts.items() if word is not None}
    if isinstance(block.steps[0], Ordinal):
        return block.model_copy(update={"steps": (Ordinal(categories=tuple(sorted(words))),)})
    if not isinstance(block.steps[0], OneHot):
        return block
    order = sorted(words, key=lambda word: (-words[word], word))
    kept = tuple(sorted(order[: spec.encode.max_categories]))
    rest, missing = len(words) > len(kept), counts[None] > 0
    step = OneHot(categories=kept, bucket_unknown=rest, bucket_missing=missing)
    features = [f"{name}={word}" for word in kept] + [f"{name} other"] * rest + [f"{name} is missing"] * missing
    return Block(columns=(name,), steps=(step,), features=tuple(features))


def _numbers(spec: DataSpec, block: Block, numbers: dict[str, Moments]) -> Block:
    """Mean imputation, standard and min-max scaling by the moments of all training rows."""
    moments = [numbers[name] for name in block.columns]
    steps: list[Any] = list(block.steps)
    for place, step in enumerate(steps):
        if isinstance(step, Impute) and spec.clean.impute == "mean" and not isinstance(steps[0], Clip):
            steps[place] = Impute(values=tuple(each.mean for each in moments))
    filled = next((step.values for step in steps if isinstance(step, Impute)), None)
    if filled is None or isinstance(steps[0], Clip):
        return block.model_copy(update={"steps": tuple(steps)})
    for place, step in enumerate(steps):
        if isinstance(step, Scale) and spec.encode.number in ("standard", "piecewise_linear"):
            steps[place] = _standard(moments, filled)
        elif isinstance(step, Scale) and spec.encode.number == "min_max":
            steps[place] = _min_max(moments, filled)
    return block.model_copy(update={"steps": tuple(steps)})


def _standard(moments: list[Moments], filled: Sequence[float]) -> Scale:
    """Mean and deviation with the missing values filled in; as scikit-learn, 1 for a column without spread."""
    offset, divisor = [], []
    for each, fill in zip(moments, filled, strict=True):
        whole = Moments(each.count, 0, each.mean, each.squares)
        if each.missing:
            whole.merge(Moments(each.missing, 0, fill))
        variance = whole.squares / whole.count
        # sklearn.preprocessing._data._is_constant_feature: below this the variance is rounding
        eps = np.finfo(np.float64).eps
        constant = variance <= whole.count * eps * variance + (whole.count * whole.mean * eps) ** 2
        offset.append(whole.mean)
        divisor.append(1.0 if constant else float(np.sqrt(variance)))
    return Scale(offset=tuple(offset), divisor=tuple(divisor))


def _min_max(moments: list[Moments], filled: Sequence[float]) -> Scale:
    offset, divisor = [], []
    for each, fill in zip(moments, filled, strict=True):
        low = min(each.low, fill) if each.missing else each.low
        high = max(each.high, fill) if each.missing else each.high
        offset.append(low)
        divisor.append(1.0 / (1.0 / (high - low)) if high > low else 1.0)
    return Scale(offset=tuple(offset), divisor=tuple(divisor))
