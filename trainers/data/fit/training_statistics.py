"""What transforms are fitted on: training rows, and where these are a sample, statistics of all of them.

Invariant: `merge` of two statistics is the statistics of both. A table in memory is one batch, which is its own sample.
Of others `SAMPLE_ROWS` rows, drawn evenly, stand in for what needs all values at once (quantiles, bins, vocabularies):
ranks within `QUANTILE_RANK_ERROR`. Counts, moments, minimum, maximum, words and sums of targets are exact.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np

from cluster.bundle.transforms import Texts, Values
from trainers.data.hashing import mix, seeded
from trainers.data.read.raw import Role
from trainers.data.sample import drawn, nearer

FOLDS = 5  # of cross-fitted target encoding: each fold is encoded by the other 80 % of the rows
EXAMPLE_ROWS = 20  # the first training rows, of which one with the fewest missing values is kept


@dataclass
class Moments:
    """Count, mean and squared deviations of a column's training values (Chan, Golub, LeVeque 1979), and its ends."""

    count: int = 0
    missing: int = 0
    mean: float = 0.0
    squares: float = 0.0
    low: float = math.inf
    high: float = -math.inf

    @staticmethod
    def of(values: np.ndarray) -> Moments:
        there = values[~np.isnan(values)]
        found = Moments(len(there), len(values) - len(there))
        if len(there):
            found.mean = float(there.mean())
            found.squares = float(((there - found.mean) ** 2).sum())
            found.low, found.high = float(there.min()), float(there.max())
        return found

    def merge(self, other: Moments) -> None:
        self.missing += other.missing
        if not other.count:
            return
        total, apart = self.count + other.count, other.mean - self.mean
        self.mean += apart * other.count / total
        self.squares += other.squares + apart**2 * self.count * other.count / total
        self.count = total
        self.low, self.high = min(self.low, other.low), max(self.high, other.high)

    def filled(self, value: float) -> Moments:
        """With this in place of missing values."""
        whole = Moments(self.count, 0, self.mean, self.squares, self.low, self.high)
        if self.missing:
            whole.merge(Moments(self.missing, 0, value, 0.0, value, value))
        return whole


@dataclass
class TrainingRows:
    """N rows, with the columns' words in alphabetical order."""

    values: dict[str, Values]
    targets: np.ndarray
    """(N,) int64 class indices, or (N,) float32."""
    numbers: np.ndarray
    """(N,) uint64, file and row in it."""

    def take(self, rows: np.ndarray) -> TrainingRows:
        return TrainingRows(take_rows(self.values, rows), self.targets[rows], self.numbers[rows])

    def joined(self, other: TrainingRows) -> TrainingRows:
        """These rows, and others that follow."""
        if not len(self.numbers):
            return other
        values = {name: _join(column, other.values[name]) for name, column in self.values.items()}
        arrays = ((self.targets, other.targets), (self.numbers, other.numbers))
        return TrainingRows(values, *(np.concatenate(pair) for pair in arrays))


Sums = dict[str | None, np.ndarray]
"""Word, None for a missing one -> (folds, 1 + goals) float64: rows, and sums of the targets."""


@dataclass
class Statistics:
    """Of the training rows."""

    rows: int = 0
    sample: TrainingRows = field(default_factory=lambda: TrainingRows({}, np.zeros(0), np.zeros(0, dtype=np.uint64)))
    head: TrainingRows = field(default_factory=lambda: TrainingRows({}, np.zeros(0), np.zeros(0, dtype=np.uint64)))
    """The first `EXAMPLE_ROWS`."""
    numbers: dict[str, Moments] = field(default_factory=dict)
    words: dict[str, Counter[str | None]] = field(default_factory=dict)
    """Of categories; None counts the missing ones."""
    sums: dict[str, Sums] = field(default_factory=dict)
    """Of categories that are encoded by the target."""

    @property
    def whole(self) -> bool:
        """Whether the sample is all rows: nothing else is known then of numbers and words."""
        return len(self.sample.numbers) == self.rows

    @staticmethod
    def of(rows: TrainingRows) -> Statistics:
        """Of rows in memory."""
        return Statistics(len(rows.numbers), rows, rows.take(np.arange(min(EXAMPLE_ROWS, len(rows.numbers)))))

    @staticmethod
    def counted(rows: TrainingRows, roles: Mapping[str, Role]) -> Statistics:
        """Of rows that are followed by others."""
        found = Statistics.of(rows)
        found.sample = rows.take(drawn(rows.numbers))
        for name, role in roles.items():
            if role in ("number", "date"):
                found.numbers[name] = Moments.of(np.asarray(rows.values[name]))
            elif role == "category":
                found.words[name] = count_words(rows.values[name])
        return found

    def merge(self, other: Statistics) -> None:
        """Take in those of rows that follow."""
        self.rows += other.rows
        for name, moments in other.numbers.items():
            self.numbers.setdefault(name, Moments()).merge(moments)
        for name, words in other.words.items():
            self.words.setdefault(name, Counter()).update(words)
        for name, sums in other.sums.items():
            mine = self.sums.setdefault(name, {})
            for word, added in sums.items():
                mine[word] = mine[word] + added if word in mine else added
        near = nearer(other.sample.numbers, self.sample.numbers)
        if len(near):
            joined = self.sample.joined(other.sample.take(near))
            self.sample = joined.take(drawn(joined.numbers))
        if (wanted := EXAMPLE_ROWS - len(self.head.numbers)) > 0 and len(other.head.numbers):
            self.head = self.head.joined(other.head.take(np.arange(min(wanted, len(other.head.numbers)))))


def count_words(column: Values) -> Counter[str | None]:
    """Rows of each word of a text column; None counts the missing ones."""
    assert isinstance(column, Texts)
    counts = np.bincount(column.codes + 1, minlength=len(column.words) + 1)
    words = (None, *column.words)
    return Counter({words[at]: int(counts[at]) for at in np.flatnonzero(counts)})


def sum_targets(column: Values, rows: TrainingRows, num_classes: int, seed: int) -> Sums:
    """Rows and target sums of each word and fold."""
    assert isinstance(column, Texts)
    goals = target_columns(rows.targets, num_classes)
    places = (column.codes + 1).astype(np.int64) * FOLDS + folds_of(rows.numbers, seed)
    size = (len(column.words) + 1) * FOLDS
    sums = [np.bincount(places, weights=goal, minlength=size) for goal in (None, *goals.T)]
    table = np.stack(sums, axis=1).reshape(-1, FOLDS, len(sums))
    words = (None, *column.words)
    return {words[at]: table[at] for at in np.flatnonzero(table[:, :, 0].any(axis=1))}


def target_columns(targets: np.ndarray, num_classes: int) -> np.ndarray:
    """(N, 1) for two classes or a quantity, (N, C) one-hot for more."""
    if num_classes <= 2:
        return targets.astype(np.float64)[:, None]
    return np.eye(num_classes)[targets]


def folds_of(numbers: np.ndarray, seed: int) -> np.ndarray:
    """(N,) int64 fold of each row, by its number alone: the same for any batch that it comes in."""
    return (mix(seeded(numbers, seed)) % np.uint64(FOLDS)).astype(np.int64)


def take_rows(values: Mapping[str, Values], rows: np.ndarray) -> dict[str, Values]:
    """The same columns with these rows."""
    return {name: take(column, rows) for name, column in values.items()}


def take(column: Values, rows: np.ndarray) -> Values:
    """Rows of one column. Its words are those that these rows use, in alphabetical order: others would be a leak."""
    if not isinstance(column, Texts):
        return column[rows]
    codes = column.codes[rows]
    used = np.unique(codes[codes >= 0])
    order = used[np.argsort(np.array(column.words, dtype=object)[used], kind="stable")]
    places = np.full(len(column.words) + 1, -1, dtype=np.int32)
    places[order] = np.arange(len(order), dtype=np.int32)
    return Texts(places[codes], tuple(column.words[code] for code in order))


def _join(first: Values, second: Values) -> Values:
    if not isinstance(first, Texts) or not isinstance(second, Texts):
        return np.concatenate([np.asarray(first), np.asarray(second)])
    index = {word: code for code, word in enumerate(first.words)}
    places = np.array([*(index.setdefault(word, len(index)) for word in second.words), -1], dtype=np.int32)
    return Texts(np.concatenate([first.codes, places[second.codes]]), tuple(index))
