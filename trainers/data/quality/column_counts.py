"""What a scan leaves of one column: counts that add up, however the rows were divided and whoever read them.

Invariant: `merge` of the counts of two parts gives the counts of both together. Rows, missing and infinite values,
white space, minimum, maximum and the mean (up to rounding) are exact; different values and words are so in a table
that is one batch, else up to `COLUMN_HASHES` and `WORDS_MAX` of them.

Covered: numbers, booleans, texts. Not covered: quantiles (report.py takes them from the sample).
"""

from __future__ import annotations

import math

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from cluster.bundle.transforms import Column
from cluster.bundle.transforms.columns import number_text, plain_float
from trainers.data.hashing import mix, text_key, words_keys
from trainers.data.quality.column_findings import SENTINELS, End
from trainers.data.quality.rules import SUSPICIOUS
from trainers.data.read.columns import numbers_there, to_texts, whole_array
from trainers.data.read.reading import Reading, reading_of
from trainers.data.read.writing import LONG, ZEROS, Writing, writing_of, writing_of_numbers
from trainers.data.sketch import COLUMN_HASHES, DistinctSketch

WORDS_MAX = 4_096  # different words of a column that are counted one by one
CLASSES_KEPT_MAX = 64  # different numbers of a column that are: a target of whole numbers has classes
CODES = f"{ZEROS}|{LONG}"  # digits that a number would change
PLAIN = Column(name="", kind="text")
LARGEST_WHOLE = 2.0**53  # from here on float64 skips whole numbers
MAP_CELLS = 40  # of the missing-value map: each is a run of rows of the table
STEP_FIRST = 256  # most columns have a step of 1 among this many values
NUMBER_START = r"^[+-]?(\.?[0-9]|[iI][nN][fF]|[nN][aA][nN])"


class ColumnCounts:
    """The counts of one column so far."""

    def __init__(self, name: str, known: ColumnCounts | None = None, *, exact: bool = False) -> None:
        """`known`: counts of other rows that these will be merged into; what those make needless is not counted.
        `exact`: all different values are counted, however many there are."""
        self.name = name
        self.words_max = None if exact else WORDS_MAX
        self.writing = Writing()
        self.salt = np.uint64(text_key(name.encode()))
        self.rows = self.empty = self.not_numbers = self.infinite = self.finite = self.spaced = 0
        """`empty`: without a value; `not_numbers`: words such as NAN, without a value where the others are numbers."""
        self.low, self.high = End(math.inf, 0, math.inf), End(-math.inf, 0, -math.inf)
        self.sums: list[float] = []
        self.origin: float | None = None
        self.step = 0
        """Whole numbers: one of them, and what all differences are multiples of (0 while all are equal)."""
        self.holes: list[np.ndarray] = []
        """(K, 2) rows and missing values of consecutive runs of rows, in order."""
        self.parsed = self.whole = True
        """`parsed`: each word is a number; `whole`: a whole one."""
        self.in_text = False
        self.different: DistinctSketch = DistinctSketch(
            None if exact else COLUMN_HASHES, None if known is None else known.different.limit
        )
        self.words: dict[str, int] | None = {} if known is None or known.words is not None else None
        """Rows of each word; None from too many words on."""
        self.suspicious: dict[str, int] = {}

    @property
    def reading(self) -> Reading:
        """How the column is read by what is known of it so far."""
        return reading_of(self.name, self.writing)

    @property
    def numeric(self) -> bool:
        """Whether the values are numbers: digits that a number would change are none."""
        return self.parsed and self.reading.kind != "code"

    @property
    def missing(self) -> int:
        """Rows without a value."""
        return self.empty + (self.not_numbers if self.numeric else 0)

    def add(self, values: pa.ChunkedArray) -> np.ndarray:
        """Take in a batch. Returns (N,) uint64 hashes by which equal rows are found: 0 for a missing value."""
        array = whole_array(values)
        self.rows += len(array)
        kind = array.type
        number = pa.types.is_floating(kind) or pa.types.is_integer(kind)
        if number:
            numbers = numbers_there(pa.chunked_array([array]))
            writing = writing_of_numbers(numbers, integers=pa.types.is_integer(kind))
            self.writing = self.writing.merge(writing)
            number = not writing.long
        if number:
            hashes = self._add_numbers(array)
        else:
            if pa.types.is_boolean(kind) or pa.types.is_integer(kind) or pa.types.is_null(kind):
                array = array.cast(pa.string())
            hashes = self._add_texts(array)
        return hashes

    def merge(self, other: ColumnCounts) -> None:
        """Take in the counts of the rows that follow."""
        for name in ("rows", "empty", "not_numbers", "infinite", "finite", "spaced"):
            setattr(self, name, getattr(self, name) + getattr(other, name))
        self.low, self.high = _joined(self.low, other.low, -1), _joined(self.high, other.high, 1)
        self.sums += other.sums
        self.holes += other.holes
        if other.origin is not None:
            self._take_step(other.origin, other.step)
        self.parsed, self.whole = self.parsed and other.parsed, self.whole and other.whole
        self.writing = self.writing.merge(other.writing)
        self.in_text = self.in_text or other.in_text
        self.different.merge(other.different)
        for word, count in other.suspicious.items():
            self.suspicious[word] = self.suspicious.get(word, 0) + count
        self._count_words(other.words)

    def _add_numbers(self, array: pa.Array) -> np.ndarray:
        numbers = pc.fill_null(array.cast(pa.float64()), math.nan).to_numpy(zero_copy_only=False) + 0.0
        holes = np.isnan(numbers)
        hashes = _number_hashes(numbers, self.salt)
        hashes[holes] = 0
        missing = int(holes.sum())
        self.empty += missing
        self.holes.append(_runs(holes) if missing else np.array([[len(holes), 0]]))
        there = numbers[~holes] if missing else numbers
        few = None if self.words is None else _few_numbers(there)
        if few is not None:
            self.different.add(_number_hashes(np.array(list(few), dtype=np.float64), self.salt))
        else:
            self.different.add(hashes[hashes != 0])
        if self.words is not None:
            self._count_words(None if few is None else {_word(value): count for value, count in few.items()})
        self._measure(numbers)
        return hashes

    def _trimmed(self, array: pa.Array) -> tuple[pa.Array, np.ndarray]:
        """The different texts without outer white space, and (N,) the place of each row's; one more where missing."""
        encoded = array if pa.types.is_dictionary(array.type) else array.dictionary_encode()
        words = encoded.dictionary
        if not (pa.types.is_string(words.type) or pa.types.is_large_string(words.type)):
            to_texts(PLAIN, pa.chunked_array([array]))  # raises: the type holds no text
        words = words.cast(pa.string())
        codes = pc.fill_null(encoded.indices, len(words)).to_numpy(zero_copy_only=False)
        trimmed = pc.utf8_trim_whitespace(words)
        spaced = pc.not_equal(trimmed, words).to_numpy(zero_copy_only=False)
        if not spaced.any():
            return trimmed, codes
        self.spaced += int(np.append(spaced, False)[codes].sum())
        again = trimmed.dictionary_encode()  # two texts may have become one
        places = again.indices.to_numpy(zero_copy_only=False)
        return again.dictionary, np.append(places, len(again.dictionary))[codes]

    def _add_texts(self, array: pa.Array) -> np.ndarray:
        self.in_text = True
        trimmed, codes = self._trimmed(array)
        counts = np.bincount(codes, minlength=len(trimmed) + 1)
        gone = pc.is_in(trimmed, value_set=pa.array(SUSPICIOUS)).to_numpy(zero_copy_only=False)
        used = counts[:-1] > 0
        for place in np.flatnonzero(gone & used):
            word = trimmed[int(place)].as_py()
            self.suspicious[word] = self.suspicious.get(word, 0) + int(counts[place])
        there = used & ~gone
        keys = words_keys(trimmed) ^ self.salt
        self.different.add(keys[there])
        floats, numeric = _parsed(trimmed)
        self.parsed = self.parsed and bool(numeric[there].all())
        not_numbers = numeric & np.isnan(floats) & there
        read = None if not_numbers.any() else floats[there]
        self.writing = self.writing.merge(writing_of(PLAIN, trimmed.filter(pa.array(there)), read))
        self.not_numbers += int(counts[:-1][not_numbers].sum())
        missing = int(counts[:-1][gone].sum() + counts[-1])
        self.empty += missing
        if not_numbers.any() and self.numeric:
            gone, missing = gone | not_numbers, missing + int(counts[:-1][not_numbers].sum())
        self.holes.append(_runs(np.append(gone, True)[codes]) if missing else np.array([[len(codes), 0]]))
        if self.words is not None:
            few = self.words_max is None or int(there.sum()) <= self.words_max
            self._count_words({trimmed[int(at)].as_py(): int(counts[at]) for at in np.flatnonzero(there)} if few
                              else None)  # fmt: skip
        if self.parsed:
            self._measure(np.append(floats, math.nan)[codes])
        changed = pc.match_substring_regex(trimmed, CODES).to_numpy(zero_copy_only=False)
        plain = numeric & ~np.isnan(floats) & ~changed
        hashes = np.append(np.where(plain, _number_hashes(floats + 0.0, self.salt), keys), np.uint64(0))
        hashes[:-1][gone] = 0
        return hashes[codes]

    def _measure(self, numbers: np.ndarray) -> None:
        """Sum, count and ends of the finite numbers of a batch."""
        finite = numbers[np.isfinite(numbers)]
        self.infinite += int(np.isinf(numbers).sum())
        self.finite += len(finite)
        if not len(finite):
            return
        self.sums.append(float(finite.sum()))
        self.whole = self.whole and bool((finite == np.floor(finite)).all())
        if self.whole:
            self._take_step(float(finite[0]), step_of(finite))
        self.low = _joined(self.low, _end(finite, finite.min(), -1), -1)
        self.high = _joined(self.high, _end(finite, finite.max(), 1), 1)

    def _take_step(self, value: float, step: int) -> None:
        """Take in whole numbers: one of them, and what all their differences are multiples of."""
        if self.origin is None:
            self.origin, self.step = value, step
        elif self.step != 1:
            self.step = math.gcd(self.step, step, int(abs(value - self.origin)))

    def _count_words(self, more: dict[str, int] | None) -> None:
        if self.words is None or more is None:
            self.words = None
            return
        for word, count in more.items():
            self.words[word] = self.words.get(word, 0) + count
        if self.words_max is not None and len(self.words) > self.words_max:
            self.words = None


def step_of(whole: np.ndarray) -> int:
    """The largest number of which all differences of these whole numbers are multiples; 0 where all are equal."""
    apart = np.abs(whole - whole[0])
    if not apart.max() < LARGEST_WHOLE:
        return 1
    few = int(np.gcd.reduce(apart[:STEP_FIRST].astype(np.int64)))
    return few if few == 1 else int(np.gcd.reduce(apart.astype(np.int64), initial=few))


def _number_hashes(numbers: np.ndarray, salt: np.uint64) -> np.ndarray:
    return mix(numbers.view(np.uint64) ^ salt)


def _few_numbers(numbers: np.ndarray) -> dict[float, int] | None:
    """Rows of each value where they are few."""
    found = pc.value_counts(pa.array(numbers))
    if len(found) > CLASSES_KEPT_MAX:
        return None
    return {value["values"].as_py(): value["counts"].as_py() for value in found}


def _word(value: float) -> str:
    return number_text(value) if math.isfinite(value) else repr(value)


def _parsed(words: pa.Array) -> tuple[np.ndarray, np.ndarray]:
    """(N,) float64: the words that are numbers, NaN for the others; (N,) bool: which are."""
    floats, numeric = np.full(len(words), math.nan), np.zeros(len(words), dtype=bool)
    starts = pc.match_substring_regex(words, NUMBER_START).to_numpy(zero_copy_only=False)
    places = np.flatnonzero(starts)
    if not len(places):
        return floats, numeric
    candidates = words.take(pa.array(places))
    try:
        floats[places], numeric[places] = candidates.cast(pa.float64()).to_numpy(zero_copy_only=False), True
    except pa.ArrowInvalid:  # some are none
        numbers = [_number(word) for word in candidates.to_pylist()]
        floats[places] = [math.nan if number is None else number for number in numbers]
        numeric[places] = [number is not None for number in numbers]
    return floats, numeric


def _number(word: str) -> float | None:
    try:
        return plain_float(word)
    except ValueError:
        return None


def _runs(holes: np.ndarray) -> np.ndarray:
    """(K, 2) rows and missing values of up to `MAP_CELLS` runs of rows, as long as each other."""
    edges = run_edges(len(holes))
    return np.stack([np.diff(edges), np.add.reduceat(holes, edges[:-1], dtype=np.int64)], axis=1)


def run_edges(rows: int) -> np.ndarray:
    """Where the runs of a table of so many rows begin, and its end; the first runs take what is left over."""
    cells = min(MAP_CELLS, rows)
    size, rest = divmod(rows, max(cells, 1))
    return np.cumsum([0, *[size + 1] * rest, *[size] * (cells - rest)])


def _end(finite: np.ndarray, value: float, side: int) -> End:
    """The end of a batch. Only a sentinel needs to know what lies beside it."""
    if value not in SENTINELS:
        return End(float(value), 1, float(value))
    rest = finite[finite != value]
    beside = side * -math.inf if not len(rest) else float(rest.min() if side < 0 else rest.max())
    return End(float(value), len(finite) - len(rest), beside)


def _joined(a: End, b: End, side: int) -> End:
    """The end of two parts: `side` -1 for the lower one."""
    if a.count == 0 or b.count == 0:
        return a if b.count == 0 else b
    if a.value == b.value:
        return End(a.value, a.count + b.count, min(a.beside, b.beside) if side < 0 else max(a.beside, b.beside))
    outer, inner = (a, b) if (a.value < b.value) == (side < 0) else (b, a)
    if outer.value not in SENTINELS:
        return outer
    beside = min(outer.beside, inner.value) if side < 0 else max(outer.beside, inner.value)
    return End(outer.value, outer.count, beside)
