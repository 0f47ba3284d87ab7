"""Findings of the quality report that need a closer look at columns: hidden missing values, dates, near-duplicates.

Invariant: looks only; a finding follows from the values alone, never from a column's name.

Covered: numbers such as -999 that stand for "no value", dates in text and in whole numbers (20260131), columns that
repeat another one. Not covered: sentinels inside the range of the real values (0, -1).
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import date

import numpy as np
import pyarrow as pa

from cluster.bundle.transforms import Texts, Values
from cluster.spec.remedy import drop_line, map_line
from trainers.data.hashing import words_keys
from trainers.data.quality.findings import Finding, Severity
from trainers.data.read.reading import Reading, choice, line, sentence
from trainers.data.read.writing import Writing

SENTINELS = (-9.0, -99.0, -999.0, -9999.0, -99999.0, 99.0, 999.0, 9999.0, 99999.0, 999999.0)
SENTINEL_ROWS_MIN = 2  # one such value is an outlier, not a habit
SENTINEL_GAP = 1.0  # a sentinel lies at least this many ranges of all other values away from them
DATE_SHARE = 0.95
NEAR_SHARE = 0.999  # rows in which two category columns must agree, and |correlation| of two number columns
UNIQUE_SHARE = 0.99  # of different words among the rows, from which columns are compared by their words
PAIR_COLUMNS_MAX = 300  # pairs grow with the square
DATES = (
    re.compile(r"^\d{4}-\d{2}-\d{2}([T ].*)?$"),
    re.compile(r"^\d{1,2}[./-]\d{1,2}[./-](\d{4}|\d{2})( .*)?$"),
    re.compile(r"^\d{4}[./]\d{1,2}[./]\d{1,2}( .*)?$"),
    re.compile(r"^\d{1,2}[ -][A-Za-z]{3,9}[ -]\d{4}$"),
)


@dataclass(frozen=True)
class End:
    """The outermost value of a column on one side, how many rows have it, and the value beside it."""

    value: float
    count: int
    beside: float


def hidden_missing(name: str, low: End, high: End, *, in_text: bool) -> list[Finding]:
    """Sentinel numbers that repeat and lie far from every other value, from the ends of the column's values.

    `in_text`: the source holds words.
    """
    found: list[Finding] = []
    for end, first, last in ((low, low.beside, high.value), (high, low.value, high.beside)):
        gap, spread = abs(end.value - end.beside), last - first
        if spread <= 0:  # fewer than three different values
            continue
        if end.value in SENTINELS and end.count >= SENTINEL_ROWS_MIN and gap >= SENTINEL_GAP * spread:
            word = f"{end.value:g}" if abs(end.value) < 1e5 else str(int(end.value))
            text = f"{end.count} values are {word}, far from all others ({first:g} to {last:g})"
            evidence = {"value": end.value, "count": end.count}
            fix = (
                map_line(name, {word: ""})
                if in_text
                else "write null in their place: reading rules apply to text alone"
            )
            found.append(Finding("hidden_missing", "warning", name, text, fix, evidence))
    return found


def reading_finding(name: str, reading: Reading, writing: Writing) -> Finding | None:
    """How codes, dates in other writings than ISO and numbers with units are read, or between what to choose."""
    text = sentence(reading, writing)
    if not text:
        return None
    evidence = {"examples": list(writing.few), "read_as": reading.kind, **reading.rules}
    severity: Severity = "info"
    fix = line(name, reading)
    if reading.other is not None:
        severity, fix, evidence = "error", choice(name, reading), {**evidence, "other": reading.other}
    if reading.kind == "code":
        return Finding("codes", severity, name, text, fix, evidence)
    if reading.kind == "unit":
        return Finding("units", severity, name, text, fix, evidence)
    return Finding("date_like", severity, name, text, fix, evidence)


def date_like(name: str, values: Values) -> list[Finding]:
    """A column of dates that are not written in one way, and would be read as categories, text or numbers."""
    if not isinstance(values, Texts):
        numbers = np.unique(values[np.isfinite(values)])
        if len(numbers) < 3 or np.mean([_is_whole_date(value) for value in numbers[:1000]]) < DATE_SHARE:
            return []
        examples = [str(int(value)) for value in numbers[:3]]
    else:
        words = values.words
        dates = [word for word in words if any(form.match(word) for form in DATES)]
        iso = [word for word in words if DATES[0].match(word)]
        if not words or len(dates) < DATE_SHARE * len(words) or len(iso) == len(words):
            return []  # whole columns of ISO dates are read as dates anyway
        examples = dates[:3]
    text = f"its values look like dates ({', '.join(examples)}), and are not read as such"
    fix = f"write them all as 2026-01-31, or drop the column: {drop_line(name)}"
    return [Finding("date_like", "warning", name, text, fix, {"examples": examples})]


def near_duplicates(columns: Mapping[str, Values], rows: np.ndarray) -> list[Finding]:
    """Columns that say the same as an earlier one in the given rows: numbers up to scale, texts up to names."""
    found: list[Finding] = []
    numbers = {name: column[rows] for name, column in columns.items() if isinstance(column, np.ndarray)}
    texts = {name: _renumbered(column.codes[rows]) for name, column in columns.items() if isinstance(column, Texts)}
    names = [name for name, values in numbers.items() if len(np.unique(values[np.isfinite(values)])) > 1]
    names = names[:PAIR_COLUMNS_MAX]
    if len(names) > 1:
        table = np.stack([_standardized(numbers[name]) for name in names])
        correlation = np.abs(table @ table.T) / max(len(rows), 1)
        for index, name in enumerate(names):
            twins = [other for other in range(index) if correlation[index, other] >= NEAR_SHARE]
            if twins:
                score = float(min(correlation[index, twins[0]], 1.0))
                found.append(_twin(name, names[twins[0]], f"correlation {score:.4f}", score))
    different = {name: len(np.unique(codes)) for name, codes in texts.items()}
    for name in texts:
        if different[name] >= UNIQUE_SHARE * len(rows):
            column = columns[name]
            assert isinstance(column, Texts)
            texts[name] = _keys(column)[rows]
    kept = [name for name in texts if different[name] > 1][:PAIR_COLUMNS_MAX]
    for index, name in enumerate(kept):
        for other in kept[:index]:
            share = float((texts[name] == texts[other]).mean())
            if share >= NEAR_SHARE:
                found.append(_twin(name, other, f"{share:.2%} of the rows agree", share))
                break
    return found


def _twin(name: str, other: str, how: str, score: float) -> Finding:
    text = f"it says the same as '{other}' ({how})"
    return Finding("near_duplicate", "warning", name, text, drop_line(name),
                   {"column": other, "score": score})  # fmt: skip


def _standardized(values: np.ndarray) -> np.ndarray:
    """Mean 0 and deviation 1; missing values at the mean."""
    values = np.where(np.isfinite(values), values, np.nan)
    centered = np.nan_to_num(values - np.nanmean(values))
    deviation = float(centered.std())
    return centered / deviation if deviation > 0 else centered


def _renumbered(codes: np.ndarray) -> np.ndarray:
    """Codes in the order of first appearance, so that two columns that differ in names alone are equal."""
    _, first, inverse = np.unique(codes, return_index=True, return_inverse=True)
    return np.argsort(np.argsort(first))[inverse]


def _keys(column: Texts) -> np.ndarray:
    """(N,) uint64 hash of each row's word: any two columns of unique words are equal by their order of appearance."""
    return np.append(words_keys(pa.array(column.words, pa.string())), np.uint64(0))[column.codes]


def _is_whole_date(value: float) -> bool:
    if not (float(value).is_integer() and 19000101 <= value <= 21001231):
        return False
    try:
        date(int(value) // 10000, int(value) // 100 % 100, int(value) % 100)
    except ValueError:
        return False
    return True
