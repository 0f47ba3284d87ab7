"""A date in any writing -> days since 1970-01-01 UTC.

Invariant: a moment gives the same number however it is written, and whether it comes as a text, a whole number
(20240713) or a count of seconds; what does not fit the writing is a ValueError.

Covered: ISO 8601, the writings of cluster/spec/date_format.py. Not covered: finding a column's writing
(trainers/data/read/writing.py).
"""

from __future__ import annotations

import math
import re
from datetime import UTC, date, datetime, timedelta, timezone
from functools import lru_cache
from typing import Any

import numpy as np

from cluster.spec.date_format import EPOCHS, MONTHS, date_pattern

SECONDS_PER_DAY = 86_400.0
CENTURY_TURN = 69  # two digits of a year from here on are of 19..: POSIX


def days_of(value: Any, writing: str) -> float:
    """Days since 1970-01-01 UTC of a value in a writing; the empty writing is ISO 8601. Raises ValueError."""
    if isinstance(value, date):  # a datetime too
        return _days(value if isinstance(value, datetime) else datetime(value.year, value.month, value.day))
    if isinstance(value, bool | np.bool_) or not isinstance(value, str | int | float | np.number):
        raise ValueError(f"a {type(value).__name__} is no date")
    if writing in EPOCHS:
        return float(value) / (EPOCHS[writing] * SECONDS_PER_DAY)
    if not isinstance(value, str):
        if not float(value).is_integer():
            raise ValueError("a fraction is no date")
        value = str(int(value))
    return _days(_moment(value, writing) if writing else datetime.fromisoformat(value))


def days_of_numbers(values: np.ndarray, writing: str) -> np.ndarray:
    """(N,) float64 days of numbers that count from 1970; `writing`: one of `EPOCHS`."""
    days: np.ndarray = values / (EPOCHS[writing] * SECONDS_PER_DAY)
    return days


def written(days: float, writing: str) -> str:
    """Days since 1970-01-01 UTC in a writing."""
    moment = datetime.fromtimestamp(days * SECONDS_PER_DAY, UTC)
    if writing in EPOCHS:
        return str(round(moment.timestamp() * EPOCHS[writing]))
    return moment.strftime(writing) if writing else moment.isoformat()


def describe(writing: str) -> str:
    """What a value must look like, for messages."""
    if writing in EPOCHS:
        units = {"epoch_s": "seconds", "epoch_ms": "milliseconds", "epoch_us": "microseconds"}
        return f"dates as {units.get(writing, 'nanoseconds')} since 1970-01-01 UTC, such as {example(writing)}"
    if writing:
        return f"dates written {writing}, such as {example(writing)}"
    return "dates in ISO 8601, such as 2026-11-24 or 2026-11-24T08:30:00Z"


def example(writing: str) -> str:
    """2026-11-24 08:30 UTC in a writing."""
    return written(datetime(2026, 11, 24, 8, 30, tzinfo=UTC).timestamp() / SECONDS_PER_DAY, writing)


@lru_cache(maxsize=256)
def _compiled(writing: str) -> re.Pattern[str]:
    return re.compile(date_pattern(writing))


def _moment(word: str, writing: str) -> datetime:
    match = _compiled(writing).match(word)
    if match is None:
        raise ValueError(f"it is not written {writing}")
    part = match.groupdict()
    if "Y" in part:
        year = int(part["Y"])
    else:
        year = int(part["y"])
        year += 1900 if year >= CENTURY_TURN else 2000
    month = MONTHS.index(part["b"][:3].lower()) + 1 if "b" in part else int(part.get("m", 1))
    hour = int(part.get("H", 0))
    if "I" in part:
        hour = int(part["I"]) % 12 + (12 if part["p"][0] in "pP" else 0)
    fraction = int(part["f"].ljust(6, "0")[:6]) if "f" in part else 0
    zone = _zone(part["z"]) if "z" in part else UTC
    minute, second = int(part.get("M", 0)), int(part.get("S", 0))
    return datetime(year, month, int(part.get("d", 1)), hour, minute, second, fraction, tzinfo=zone)


def _zone(text: str) -> timezone:
    if text[0] not in "+-":
        return UTC
    digits = text[1:].replace(":", "")
    return timezone((1 if text[0] == "+" else -1) * timedelta(hours=int(digits[:2]), minutes=int(digits[2:])))


def _days(moment: datetime) -> float:
    moment = moment if moment.tzinfo else moment.replace(tzinfo=UTC)
    days = float(moment.timestamp() / SECONDS_PER_DAY)
    if math.isnan(days):  # pandas' NaT is a datetime
        raise ValueError("it is no moment")
    return days
