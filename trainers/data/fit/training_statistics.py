"""Statistics of training rows that are never together in memory, and what is fitted with them.

Invariant: `merge` of two statistics is the statistics of both. Exact: counts, moments, minimum, maximum and words of
all training rows. `SAMPLE_ROWS` of them, drawn evenly, stand in for what needs all values at once (quantiles, bins,
vocabularies): ranks within `QUANTILE_RANK_ERROR`.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pyarrow as pa

from cluster.bundle.transforms import Block, Output, Texts, Values
from cluster.bundle.transforms.seen import SeenColumn, seen_numbers, seen_words
from cluster.bundle.transforms.steps import Clip, Impute, MissingIndicator, OneHot, Ordinal, Scale
from cluster.spec.data import SPLITS, DataSpec
from trainers.data.fit.seen import EXAMPLE_ROWS
from trainers.data.fit.table import FEATURES
from trainers.data.read.raw import Role
from trainers.data.sample import Sample, decoded, join_rows


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
    """What is known of the rows of each split and class, and the training rows' moments, words and sample."""

    splits: list[int] = field(default_factory=lambda: [0] * len(SPLITS))
    classes: Counter[tuple[int, int]] = field(default_factory=Counter)
    """(split, class index) -> rows."""
    numbers: dict[str, Moments] = field(default_factory=dict)
    words: dict[str, Counter[str | None]] = field(default_factory=dict)
    sample: Sample = field(default_factory=Sample)
    head: pa.Table = field(default_factory=lambda: pa.table({}))
    """The first `EXAMPLE_ROWS` training rows."""

    def add(self, numbers: np.ndarray, rows: pa.Table, values: Mapping[str, Values]) -> None:
        """Take in training rows that follow. `numbers`: (N,) uint64 of the rows; `rows`: as they were read."""
        for name, column in values.items():
            if isinstance(column, Texts):
                counts = np.bincount(column.codes + 1, minlength=len(column.words) + 1)
                words = (None, *column.words)
                counted = {words[at]: int(counts[at]) for at in np.flatnonzero(counts)}
                self.words.setdefault(name, Counter()).update(counted)
            else:
                self.numbers.setdefault(name, Moments()).add(column)
        self.sample.add(rows, numbers)
        self._begin(rows)

    def merge(self, other: Statistics) -> None:
        self.splits = [a + b for a, b in zip(self.splits, other.splits, strict=True)]
        self.classes.update(other.classes)
        for name, moments in other.numbers.items():
            self.numbers.setdefault(name, Moments()).merge(moments)
        for name, words in other.words.items():
            self.words.setdefault(name, Counter()).update(words)
        self.sample.add(other.sample.rows, other.sample.numbers)
        self._begin(other.head)

    def _begin(self, rows: pa.Table) -> None:
        """Training rows that follow those of before."""
        wanted = min(EXAMPLE_ROWS - self.head.num_rows, rows.num_rows)
        if wanted > 0:
            self.head = join_rows(self.head, decoded(rows.slice(0, wanted))).combine_chunks()

    def seen(self, roles: dict[str, Role]) -> dict[str, SeenColumn]:
        """As fit/seen.py, of all training rows."""
        found: dict[str, SeenColumn | None] = {}
        for name, role in roles.items():
            if role in ("number", "date"):
                found[name] = seen_numbers(self.numbers[name].low, self.numbers[name].high)
            elif role == "category":
                found[name] = seen_words(word for word in self.words[name] if word is not None)
        return {name: seen for name, seen in found.items() if seen is not None}


def exact_output(spec: DataSpec, output: Output, roles: dict[str, Role], whole: Statistics) -> Output:
    """An output that was fitted on a sample, with what is known of all training rows in its place."""
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
