"""What the writing of a column says about how to read it: a number, a code, a date, a number with a unit, words.

Invariant: a pure function of the column's name and writing, for the run and for the quality report alike; where the
values allow two readings both are given, and nobody chooses for the user.

Covered: codes, dates, epochs, units, separators. Not covered: categories and free text (infer.py).
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any, Literal

from cluster.bundle.transforms import Column
from cluster.bundle.transforms.dates import days_of
from cluster.spec.date_format import EPOCHS
from cluster.spec.remedy import written_line
from trainers.data.read.writing import CURRENCIES, DIGITS_MAX, FEW, ISO, ISO_BROKEN, Writing

EPOCH_SECONDS = (631_152_000, 2_208_988_800)
"""1990 to 2039: counts that are moments when the column's name says that it holds any."""
NAMES_OF_MOMENTS = {"timestamp", "timestamps", "epoch", "datetime", "unix", "unixtime", "ts"}
LAST_NAMES_OF_MOMENTS = {"time", "date", "day", "at", "when", "on"}
SCALES = {"s": "epoch_s", "sec": "epoch_s", "seconds": "epoch_s", "ms": "epoch_ms", "millis": "epoch_ms",
          "us": "epoch_us", "micros": "epoch_us", "ns": "epoch_ns", "nanos": "epoch_ns"}  # fmt: skip
WEAK = ("%y", "%Y%m")
"""Writings that other things have too, such as version numbers: `FEW` different values, or a name that says a date."""


@dataclass(frozen=True)
class Reading:
    """How a column is read."""

    kind: Literal["number", "code", "date", "unit", "words"]
    rules: dict[str, Any]
    """Fields of `Column`."""
    other: dict[str, Any] | None = None
    """The rules of a second reading that all values allow as well."""


def reading_of(name: str, writing: Writing) -> Reading:
    """The reading of a column that the spec does not declare."""
    dates = _dates(name, writing)
    if dates:
        return Reading("date", {"date": dates[0]}, {"date": dates[1]} if len(dates) > 1 else None)
    if writing.numbers and writing.few:
        if epoch := epoch_of(name, writing):
            return Reading("date", {"date": epoch})
        if writing.whole and (writing.zeros or writing.long):
            return Reading("code", {})
        return Reading("number", {})
    if writing.units:
        return unit_reading(next(iter(writing.units)), writing.forms) or Reading("words", {})
    return Reading("words", {})


def unit_reading(unit: str, forms: set[str]) -> Reading | None:
    """The reading of numbers beside a unit; None where they do not agree on points and commas."""
    points, commas = {"thousands", "point"} & forms, {"swapped", "comma"} & forms
    plain, swapped = {"unit": unit}, {"unit": unit, "thousands": ".", "decimal": ","}
    if points and commas:
        return None
    if "either" in forms:
        both = {**plain, "thousands": ","}
        if commas:
            return Reading("unit", swapped)
        return Reading("unit", both, None if points or unit in CURRENCIES else swapped)
    cents = "point of three" in forms and "point" not in forms and not points and unit in CURRENCIES
    if commas or cents:  # no price has three decimals
        return Reading("unit", swapped)
    return Reading("unit", {**plain, "thousands": ","} if "thousands" in forms else plain)


def sure_dates(writing: Writing) -> list[str]:
    """The writings that all values fit, without those that say the same; ISO first."""
    found = sorted(writing.dates or ())
    if ISO in found:
        return [ISO]
    others = [form for form in found if form != ISO_BROKEN]
    return others or ([ISO] if ISO_BROKEN in found else [])


def _dates(name: str, writing: Writing) -> list[str]:
    found = sure_dates(writing)
    weak = any(mark in form for form in found for mark in WEAK)
    return found if not weak or len(writing.few) >= FEW or says_moment(name) else []


def epoch_of(name: str, writing: Writing, *, declared: bool = False) -> str | None:
    """The writing of numbers that count from 1970; None where name or range do not make it certain."""
    if not (declared or says_moment(name)) or writing.low > writing.high:
        return None
    scale = SCALES.get(_tokens(name)[-1]) if _tokens(name) else None
    for epoch, counts in EPOCHS.items():
        low, high = (bound * counts for bound in EPOCH_SECONDS)
        if low <= writing.low and writing.high < high and scale in (None, epoch):
            return epoch
    return None


def says_moment(name: str) -> bool:
    """Whether a column's name says that it holds dates or times."""
    tokens = _tokens(name)
    if NAMES_OF_MOMENTS & set(tokens):
        return True
    rest = [token for token in tokens if token not in SCALES and token != "utc"]
    return bool(rest) and rest[-1] in LAST_NAMES_OF_MOMENTS


def _tokens(name: str) -> list[str]:
    return [token.lower() for token in re.findall(r"[A-Z]+(?![a-z])|[A-Z]?[a-z]+|[0-9]+", name)]


def sentence(reading: Reading, writing: Writing) -> str:
    """What is said of a reading that was inferred; empty where there is nothing to say."""
    example = repr(writing.few[0]) if writing.few else ""
    if reading.other is not None:
        both = {word: [_value(reading.kind, rules, word) for rules in (reading.rules, reading.other)]
                for word in writing.few}  # fmt: skip
        word = next((word for word, (a, b) in both.items() if a.split()[0] != b.split()[0]), writing.few[0])
        return f"{word!r} can be read as {both[word][0]} and as {both[word][1]}, and no value settles which"
    if reading.kind == "code":
        lost = "leading zeros" if writing.zeros else f"more than {DIGITS_MAX} digits"
        return f"its values are digits that a number would change ({lost}, such as {_code(writing)}): read as codes"
    if reading.kind == "unit":
        marks = f" and '{reading.rules['thousands']}' between thousands" if reading.rules.get("thousands") else ""
        return f"its values are numbers with the unit '{reading.rules['unit']}'{marks}, such as {example}"
    if reading.kind == "date" and reading.rules["date"] != ISO:
        return f"its values are dates written {reading.rules['date']}, such as {example}"
    return ""


def line(name: str, reading: Reading, rules: dict[str, Any] | None = None) -> str:
    """The line of the spec that says this reading, or for codes that overrules it."""
    if reading.kind == "code":
        return written_line(name, "number")
    rules = reading.rules if rules is None else rules
    if reading.kind == "date":
        return written_line(name, f'{{date: "{rules["date"]}"}}' if rules["date"] else "date")
    said = ", ".join(f'{part}: "{rules[part]}"' for part in ("unit", "thousands", "decimal") if rules.get(part))
    return written_line(name, f"{{{said}}}")


def choice(name: str, reading: Reading) -> str:
    """Both lines of the spec between which the user has to choose."""
    return f"{line(name, reading)} or {line(name, reading, reading.other)}"


def _code(writing: Writing) -> str:
    """An example whose digits would be lost, where it is among the first."""
    for word in writing.few:
        if (writing.zeros and word.startswith("0") and len(word) > 1) or len(word.lstrip("+-0")) > DIGITS_MAX:
            return repr(word)
    return repr(writing.few[0])


def _value(kind: str, rules: dict[str, Any], word: str) -> str:
    """A word as one of its readings."""
    if kind == "date":
        from datetime import UTC, datetime

        moment = datetime.fromtimestamp(days_of(word, rules["date"]) * 86_400, UTC)
        return f"{moment:%Y-%m-%d} ({rules['date']})"
    return f"{Column(name='', kind='number', **rules).parse_number(word, 0):g}"
