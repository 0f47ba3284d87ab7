"""What is decided about rows before anything is fitted: the target's task and classes, and each row's split.

Invariant: of a table in memory and of one past memory the same is decided, by the same functions.

Covered: tables in memory, images, arrays (`plan_rows`); the target and the split of any table. Not covered: the passes
over a table past memory (passes.py).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from cluster.bundle.transforms import Column, Texts
from cluster.errors import DataError
from cluster.spec.data import DataSpec
from trainers.data import targets as target_rules
from trainers.data.fit.arrays import check_rules
from trainers.data.read.columns import make_column
from trainers.data.read.infer import target_column
from trainers.data.read.raw import FREE, RawData
from trainers.data.read.sources import Inspect, read_source
from trainers.data.split_classes import check_split_classes
from trainers.data.splits import assign_splits, split_rows
from trainers.data.targets import Task


@dataclass(frozen=True)
class Target:
    """What is learned, and how a table's words are read as it."""

    task: Task
    reason: str
    """Why it is that task."""
    classes: tuple[str, ...]
    """Empty for a quantity."""
    codes: dict[str, int] = field(default_factory=dict)
    """Word -> class index."""
    column: Column | None = None
    """How a quantity is read."""

    def read(self, texts: Texts) -> np.ndarray:
        """(N,) int64 class indices, or float32 values. Raises DataError."""
        if self.classes:
            return np.array([self.codes[word] for word in texts.words], dtype=np.int64)[texts.codes]
        return np.array([self._quantity(word) for word in texts.words], dtype=np.float32)[texts.codes]

    def encode(self, values: np.ndarray) -> np.ndarray:
        """The targets of arrays: (N,) int64 class indices, or float32 values."""
        if not self.classes:
            return values.astype(np.float32)
        return target_rules.encode(target_rules.class_labels(values), self.classes)

    def _quantity(self, word: str) -> float:
        assert self.column is not None
        try:
            return self.column.number_of(word)
        except ValueError:
            raise DataError(
                f"Cannot use '{self.column.name}' as the target", found=f"it holds {word!r} beside numbers",
                rule="a quantity is a number in every row",
                remedy="Mend these rows, or map the word to a missing value with data.clean.map_values.",
            ) from None  # fmt: skip


@dataclass(frozen=True)
class RowPlan:
    """The rows of a source in memory, with their targets and splits."""

    raw: RawData
    target: Target
    targets: np.ndarray
    """(N,) int64 class indices, or (N,) float32."""
    assigned: np.ndarray
    """(N,) int8 index into SPLITS."""
    rows: dict[str, np.ndarray]
    """Row indices of each split."""


def plan_rows(spec: DataSpec, inspect: Inspect | None = None) -> RowPlan:
    """Read the source, check the target and split. Raises DataError."""
    raw = read_source(spec, inspect)
    if raw.table is None:
        check_rules(spec)
    if raw.words is not None:
        target = settle_words(spec, raw.words.words, len(raw), raw.missing_targets)
        codes = target.read(raw.words)
    else:
        target = _settle(spec, raw.targets, len(raw), {})
        codes = target.encode(raw.targets)
    keys = raw.keys if raw.keys is not None else np.arange(len(raw), dtype=np.uint64)
    assigned = assign_rows(spec, target, codes, keys, fixed=raw.fixed, times=raw.times)
    return RowPlan(raw, target, codes, assigned, split_rows(assigned))


def settle_words(spec: DataSpec, words: Sequence[str], rows: int, missing: Mapping[str, int]) -> Target:
    """The target of a table of so many rows, by its different words. `missing`: texts that are read as missing. Raises
    DataError."""
    column = target_column(spec, words)
    numbers = None if column is None else column.numbers_of(words)
    values = np.array(words, dtype=object) if numbers is None else numbers
    target = _settle(spec, values, rows, missing)
    labels = target_rules.class_labels(values).tolist() if target.classes else []
    codes = {word: target.classes.index(label) for word, label in zip(words, labels, strict=False)}
    column = column or make_column(spec, spec.target)
    return Target(target.task, target.reason, target.classes, codes, column)


def _settle(spec: DataSpec, values: np.ndarray, rows: int, missing: Mapping[str, int]) -> Target:
    """`values`: of all rows, or the different ones."""
    task = target_rules.infer_task(values, spec.task)
    reason = target_rules.task_reason(values, task)
    if task == "regression":
        target_rules.check_regression(values, spec.target, rows)
        return Target(task, reason, ())
    labels = target_rules.class_labels(values)
    return Target(task, reason, target_rules.find_classes(labels, spec.target, rows, missing))


def assign_rows(
    spec: DataSpec, target: Target, codes: np.ndarray, keys: np.ndarray, *, fixed: np.ndarray | None,
    times: np.ndarray | None,
) -> np.ndarray:  # fmt: skip
    """(N,) int8 index into SPLITS of all rows; the arguments as of `assign_splits`. Raises DataError, also for classes
    that a split lacks."""
    strata = codes if target.classes and spec.split.group is None else None  # a group has rows of several classes
    by_rank = spec.split.time is None and spec.split.column is None and not spec.split.by_hash
    if strata is not None and spec.split.stratify and by_rank:
        # rows that the source itself puts into a split need no share of the others
        others = (spec.split.validation, spec.split.calibration, spec.split.gate,
                  spec.split.test if fixed is None else 0)  # fmt: skip
        free = codes if fixed is None else codes[fixed == FREE]
        target_rules.check_class_rows(free, target.classes, 1 + sum(1 for share in others if share))
    assigned = assign_splits(spec.split, keys, strata, fixed=fixed, times=times)
    rows = split_rows(assigned)
    if "train" not in rows:
        raise DataError("Cannot split the data", found="no row is left for train", remedy="Lower the other shares.")
    if target.classes:
        counts = {name: np.bincount(codes[index], minlength=len(target.classes)) for name, index in rows.items()}
        check_split_classes(
            spec,
            counts,
            target.classes,
            different=lambda index: len(np.unique(keys[codes == index])),
            mapped=target.column is not None,
        )
    return assigned
