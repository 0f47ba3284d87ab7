"""Raw values of a column -> numbers or texts, by the rules that training used.

Invariant: the same value gives the same result whether it comes as a JSON row, as a word of a CSV file or from a
Parquet column; what a rule does not allow is a DataError that names the column, the row and the value.

Covered: missing texts, white space, mapped values, numbers in text, infinity, booleans. Not covered: fitting.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, Literal

import numpy as np

from cluster.errors import DataError
from cluster.spec.base import StrictSpec

SECONDS_PER_DAY = 86_400.0


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

    def clean_word(self, word: str) -> str | None:
        """A text without outer white space, mapped, or None where it means "no value"."""
        word = word.strip()
        word = self.mapped.get(word, word)
        return None if word in self.missing else word

    def parse_number(self, value: Any, row: int) -> float:
        """A raw value as float64, NaN where missing. Raises DataError."""
        if value is None:
            return math.nan
        if isinstance(value, str):
            word = self.clean_word(value)
            if word is None:
                return math.nan
            value = word.replace(self.thousands, "") if self.thousands else word
        try:
            number = float(value)
        except (TypeError, ValueError):
            raise DataError(
                f"Cannot read column '{self.name}'",
                found=f"row {row} has {value!r}",
                rule="the column holds numbers",
                remedy="Send a number, or null for a missing value.",
            ) from None
        if math.isinf(number):
            return self._infinity(row)
        return number

    def parse_date(self, value: Any, row: int) -> float:
        """An ISO 8601 date or time as days since 1970-01-01 UTC, NaN where missing. Raises DataError."""
        if value is None or (isinstance(value, float) and math.isnan(value)):
            return math.nan
        word = self.clean_word(value) if isinstance(value, str) else value
        if word is None:
            return math.nan
        try:
            moment = datetime.fromisoformat(word) if isinstance(word, str) else word
            moment = moment if moment.tzinfo else moment.replace(tzinfo=UTC)
            return float(moment.timestamp() / SECONDS_PER_DAY)
        except (ValueError, AttributeError):
            raise DataError(
                f"Cannot read column '{self.name}'",
                found=f"row {row} has {value!r}",
                rule="the column holds dates in ISO 8601, such as 2026-11-24 or 2026-11-24T08:30:00Z",
                remedy="Send such a date, or null for a missing value.",
            ) from None

    def parse_text(self, value: Any, row: int) -> str | None:
        """A raw value as the text it has in training, None where missing. Raises DataError."""
        if value is None or (isinstance(value, float) and math.isnan(value)):
            return None
        if isinstance(value, bool | np.bool_):
            value = "true" if value else "false"
        elif isinstance(value, int | float | np.number):
            value = number_text(float(value))
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

    def _infinity(self, row: int) -> float:
        if self.infinite == "missing":
            return math.nan
        raise DataError(
            f"Cannot read column '{self.name}'",
            found=f"row {row} is infinite",
            rule="features must be finite",
            remedy="Send null for a missing value, or train with data.clean.infinite: missing.",
        )


def number_text(value: float) -> str:
    """The text of a number used as a category: 7 and 7.0 are the same category."""
    return str(int(value)) if value.is_integer() else repr(value)
