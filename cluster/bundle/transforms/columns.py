"""Raw values of a column -> numbers or texts, by the rules that training used.

Invariant: the same value gives the same result whether it comes as a JSON row, as a word of a CSV file or from a
Parquet column; what a rule does not allow is a DataError that names the column, the row and the value.

Covered: missing texts, white space, mapped values, numbers in text with units and separators, dates, infinity,
booleans. Not covered: fitting, and finding the rules (trainers/data/read/infer.py).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, Any, Literal

import numpy as np
from pydantic import AfterValidator

from cluster.bundle.transforms.dates import days_of, describe
from cluster.errors import DataError
from cluster.spec.base import StrictSpec
from cluster.spec.date_format import check_date_format

EXACT_BELOW = 2.0**53  # from here on float64 skips whole numbers
GROUP_DIGITS = 3  # between two separators of thousands


@dataclass(frozen=True)
class Texts:
    """A dictionary-encoded text column."""

    codes: np.ndarray
    """(N,) int32 index into words, -1 where missing."""
    words: tuple[str, ...]

    def __len__(self) -> int:
        return len(self.codes)


Values = np.ndarray | Texts
"""(N,) float64 with NaN where missing, or texts."""


class Column(StrictSpec):
    """One raw column that the model's inputs are made of, and how its values are read."""

    name: str
    kind: Literal["number", "text", "date"]
    """A date becomes the number of days since 1970-01-01 UTC."""
    missing: tuple[str, ...] = ("",)
    """Texts that mean "no value", compared after white space is stripped."""
    mapped: dict[str, str] = {}
    """Texts that are replaced, after stripping and before anything else."""
    infinite: Literal["error", "missing"] = "error"
    thousands: str = ""
    """Separator of thousands that is taken out of numbers in text."""
    decimal: str = "."
    """Mark of the decimals of numbers in text; where it is another one than a point, a point is no part of a number
    unless it separates thousands."""
    unit: str = ""
    """Unit or currency that may stand before or after a number in text, and is taken off."""
    date: Annotated[str, AfterValidator(lambda text: check_date_format(text) if text else text)] = ""
    """How dates are written, such as `%d/%m/%Y %H:%M` or `epoch_ms`; empty: ISO 8601."""

    def number_of(self, word: str) -> float:
        """The number that a cleaned word is. Raises ValueError for another text."""
        if self.unit:
            word = without_unit(word, self.unit)
        if self.decimal != ".":
            head, mark, tail = word.partition(self.decimal)
            if self.thousands and self.thousands in head:
                first, *groups = head.split(self.thousands)
                if not first.lstrip("+-") or any(len(group) != GROUP_DIGITS for group in groups):
                    raise ValueError(word)  # "3.14" is no 314
                head = first + "".join(groups)
            if "." in head or "." in tail:
                raise ValueError(word)
            return plain_float(f"{head}.{tail}" if mark else head)
        return plain_float(word.replace(self.thousands, "") if self.thousands else word)

    def numbers_of(self, words: Sequence[str]) -> np.ndarray | None:
        """(N,) float64 where each cleaned word is a number, else None."""
        try:
            return np.array([self.number_of(word) for word in words], dtype=np.float64)
        except ValueError:
            return None

    def clean_word(self, word: str) -> str | None:
        """A text without outer white space, mapped, or None where it means "no value"."""
        word = word.strip()
        mapped = self.mapped.get(word, word)
        return None if self.is_missing(mapped) else mapped

    def is_missing(self, word: str) -> bool:
        """Whether a text without outer white space means "no value": one that is mapped to itself is a value."""
        return word in self.missing and self.mapped.get(word) != word

    def plain_word(self, word: str) -> str:
        """The text of a number with a decimal point and without separators; another text as it is."""
        if not any(mark in word for mark in (self.thousands, self.decimal.replace(".", "")) if mark):
            return word  # the digits of a code stay as they are
        try:
            return number_text(self.number_of(word))
        except ValueError:
            return word

    def parse_number(self, value: Any, row: int) -> float:
        """A raw value as float64, NaN where missing. Raises DataError."""
        if value is None:
            return math.nan
        if isinstance(value, str):
            word = self.clean_word(value)
            if word is None:
                return math.nan
            value = word
        try:
            number = self.number_of(value) if isinstance(value, str) else float(value)
        except (TypeError, ValueError):
            unit = f" with the unit {self.unit!r}, or without one" if self.unit else ""
            raise DataError(
                f"Cannot read column '{self.name}'",
                found=f"row {row} has {value!r}",
                rule=f"the column holds numbers{unit}",
                remedy="Send a number, or null for a missing value.",
            ) from None
        if math.isinf(number):
            return self._infinity(row)
        return number

    def parse_date(self, value: Any, row: int) -> float:
        """A date or time in the column's writing as days since 1970-01-01 UTC, NaN where missing. Raises DataError."""
        if value is None or (isinstance(value, float) and math.isnan(value)):
            return math.nan
        word = self.clean_word(value) if isinstance(value, str) else value
        if word is None:
            return math.nan
        try:
            return days_of(word, self.date)
        except (ValueError, OverflowError):
            raise DataError(
                f"Cannot read column '{self.name}'",
                found=f"row {row} has {value!r}",
                rule=f"the column holds {describe(self.date)}",
                remedy="Send such a date, or null for a missing value.",
            ) from None

    def parse_text(self, value: Any, row: int) -> str | None:
        """A raw value as the text it has in training, None where missing. Raises DataError."""
        if value is None or (isinstance(value, float) and math.isnan(value)):
            return None
        if isinstance(value, bool | np.bool_):
            value = "true" if value else "false"
        elif isinstance(value, int | np.integer):
            value = str(int(value))  # by way of a float the digits from the 16th on would be others
        elif isinstance(value, float | np.number):
            value = self._float_text(float(value), row)
        elif not isinstance(value, str):
            raise DataError(
                f"Cannot read column '{self.name}'",
                found=f"row {row} has a {type(value).__name__}",
                rule="the column holds text",
                remedy="Send a string, or null for a missing value.",
            )
        return self.clean_word(value)

    def from_rows(self, values: Sequence[Any]) -> Values:
        """Raw values of N rows. Raises DataError."""
        if self.kind != "text":
            parse = self.parse_number if self.kind == "number" else self.parse_date
            parsed = (parse(value, row) for row, value in enumerate(values))
            return np.fromiter(parsed, dtype=np.float64, count=len(values))
        index: dict[str, int] = {}
        codes = np.empty(len(values), dtype=np.int32)
        for row, value in enumerate(values):
            word = self.parse_text(value, row)
            codes[row] = -1 if word is None else index.setdefault(word, len(index))
        return Texts(codes, tuple(index))

    def _float_text(self, value: float, row: int) -> str:
        """A float as a category. Raises DataError for one whose last digits are anybody's guess."""
        if abs(value) < EXACT_BELOW or not math.isfinite(value):
            return number_text(value)
        raise DataError(
            f"Cannot read column '{self.name}'",
            found=f"row {row} has {value!r}, a number that has lost digits on its way",
            rule="the column holds texts, and numbers from 2^53 on keep no more than 16 digits",
            remedy="Send it as a string.",
        )

    def _infinity(self, row: int) -> float:
        if self.infinite == "missing":
            return math.nan
        raise DataError(
            f"Cannot read column '{self.name}'",
            found=f"row {row} is infinite",
            rule="features must be finite",
            remedy="Send null for a missing value, or train with data.clean.infinite: missing.",
        )


def plain_float(word: str) -> float:
    """A number as files write it. Raises ValueError, also for `12_34`, which is a number to Python alone."""
    if "_" in word:
        raise ValueError(word)
    return float(word)


def without_unit(word: str, unit: str) -> str:
    """A number without the unit before or after it: `-$ 5`, `$-5`, `5 kg`."""
    sign, rest = (word[:1], word[1:].lstrip()) if word[:1] in ("+", "-") else ("", word)
    if rest.startswith(unit):
        return sign + rest[len(unit) :].lstrip()
    return sign + rest[: -len(unit)].rstrip() if rest.endswith(unit) else word


def number_text(value: float) -> str:
    """The text of a number used as a category: 7 and 7.0 are the same category."""
    return str(int(value)) if value.is_integer() else repr(value)
