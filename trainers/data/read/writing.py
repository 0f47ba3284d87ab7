"""How the different values of a column are written: digits, dates in a writing, numbers with a unit.

Invariant: `Writing.merge` of two parts is the writing of both, so that a table in memory and one in pieces are read
alike; whether all words fit is asked of Arrow's regular expressions, with the patterns that read the values later.

Covered: texts, arrays of numbers. Not covered: what follows from it (infer.py).
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from cluster.bundle.transforms import Column
from cluster.bundle.transforms.columns import without_unit
from cluster.spec.date_format import MONTH, WEEKDAY, date_pattern

DIGITS_MAX = 15  # a float64 holds every whole number of so many digits, and not every one of 16
FEW = 5  # different values that are kept: from so many on a chance agreement is ruled out
ISO_STRICT = (
    r"^[0-9]{4}-[0-9]{2}-[0-9]{2}"
    r"([T ][0-9]{2}:[0-9]{2}(:[0-9]{2}([.,][0-9]{1,9})?)?(Z|[+-][0-9]{2}(:?[0-9]{2})?)?)?$"
)
ISO_LOOSE = r"^[0-9]{4}-[0-9]{2}-[0-9]{2}([T ].*)?$"
ISO, ISO_BROKEN = "", "iso with mistakes"
WHOLE = r"^[+-]?[0-9]+$"
ZEROS = r"^0[0-9]+$"
LONG = rf"^[+-]?0*[1-9][0-9]{{{DIGITS_MAX},}}$"
CENTURIES = r"^(19|20)"
WHOLE_DATES = {8: "%Y%m%d", 12: "%Y%m%d%H%M", 14: "%Y%m%d%H%M%S"}
"""Digits -> writing of a date without separators."""
CURRENCIES = (
    "$", "€", "£", "¥", "₹", "₽", "₩", "₺", "₴", "₫", "฿", "₦", "₪", "zł", "kr", "Kč", "Ft", "R$", "US$",
    "USD", "EUR", "GBP", "JPY", "CHF", "CNY", "INR", "AUD", "CAD", "SEK", "NOK", "DKK", "PLN", "BRL", "RUB",
)  # fmt: skip
UNITS = frozenset((
    "%", "‰", "°", "°C", "°F", "℃", "℉", "bp", "bps", "pp", "ppm", "ppb", "kg", "g", "mg", "µg", "lb", "lbs",
    "oz", "t", "km", "m", "cm", "mm", "µm", "nm", "mi", "ft", "in", "yd", "m²", "m2", "km²", "km2", "ha",
    "sqft", "m³", "m3", "l", "L", "ml", "mL", "cl", "dl", "gal", "km/h", "kmh", "kph", "mph", "m/s", "kn",
    "bpm", "rpm", "s", "ms", "µs", "us", "ns", "sec", "secs", "min", "mins", "h", "hr", "hrs", "d", "yr",
    "yrs", "mo", "V", "mV", "kV", "mA", "W", "kW", "MW", "kWh", "MWh", "J", "kJ", "kcal", "cal", "N", "Pa",
    "hPa", "kPa", "bar", "psi", "mbar", "mmHg", "Hz", "kHz", "MHz", "GHz", "KB", "kB", "MB", "GB", "TB", "KiB",
    "MiB", "GiB", "px", "pt", "bhp", "hp", "PS", "cc", "CC", "Nm", "kmpl", "mg/dL", "mmol/L", "g/L", "g/l",
    "µg/m³",
))  # fmt: skip
"""Units that may follow a number without a space; other words are units where a space parts them."""
_NUMBER = r"[0-9](?:[0-9.,]*[0-9])?|[.][0-9]+"
_WITH_UNIT = re.compile(
    rf"^[+-]?(?P<before>[^0-9\s+.,-][^0-9\s+.,-]{{0,3}})?\s*[+-]?(?:{_NUMBER})"
    r"(?P<gap>\s*)(?P<after>[^0-9\s.,+-][^\s,]{0,15})?$"
)
_TIME = re.compile(
    r"^(?P<gap>T|:|,?\s+)(?P<H>[0-9]{1,2}):[0-9]{2}(?P<S>:[0-9]{2})?(?P<f>[.][0-9]{1,9})?"
    r"(?:(?P<pgap>\s?)(?P<p>[ap][.]?m[.]?))?(?:(?P<zgap>\s?)(?P<z>z|utc|gmt|[+-][0-9]{2}:?[0-9]{2}))?$",
    re.IGNORECASE,
)
_DATES = tuple(
    (re.compile(pattern, re.IGNORECASE), forms)
    for pattern, forms in (
        (r"^[0-9]{4}([-/.])[0-9]{1,2}\1[0-9]{1,2}", ("%Y{0}%m{0}%d",)),
        (r"^[0-9]{1,2}([-/])[0-9]{1,2}\1[0-9]{4}", ("%d{0}%m{0}%Y", "%m{0}%d{0}%Y")),
        (r"^[0-9]{1,2}([.])[0-9]{1,2}\1[0-9]{4}", ("%d{0}%m{0}%Y",)),  # no place writes the month first with dots
        (r"^[0-9]{1,2}(/)[0-9]{1,2}/[0-9]{2}(?![0-9])", ("%d{0}%m{0}%y", "%m{0}%d{0}%y")),
        (r"^[0-9]{2}([.])[0-9]{2}\1[0-9]{2}(?![0-9])", ("%d{0}%m{0}%y",)),
        (rf"^[0-9]{{1,2}}(?:st|nd|rd|th)?([-/.,\s]*){MONTH}([-/.,\s]*)[0-9]{{4}}", ("%d{0}%b{1}%Y",)),
        (rf"^[0-9]{{1,2}}(?:st|nd|rd|th)?([-/.,\s]*){MONTH}([-/.,\s]*)[0-9]{{2}}(?![0-9])", ("%d{0}%b{1}%y",)),
        (rf"^{MONTH}([-/.,\s]+)[0-9]{{1,2}}(?:st|nd|rd|th)?([-/.,\s]+)[0-9]{{4}}", ("%b{0}%d{1}%Y",)),
        (r"^[0-9]{8}(?=T[0-9]{6}$)", ("%Y%m%d",)),
    )
)
_CTIME = re.compile(rf"^{WEEKDAY} {MONTH}\s+[0-9]{{1,2}} [0-9]{{2}}:[0-9]{{2}}:[0-9]{{2}} [0-9]{{4}}$", re.IGNORECASE)
_WEEKDAY = re.compile(rf"^{WEEKDAY}([,.\s]+)", re.IGNORECASE)


@dataclass
class Writing:
    """What all different values have in common. Without values everything is true of all of them."""

    few: tuple[str, ...] = ()
    """The first different values, at most `FEW`."""
    numbers: bool = True
    """All are numbers by the column's rules."""
    whole: bool = True
    """All are digits alone, with a sign at most."""
    zeros: bool = False
    """Some begin with a zero that a number would lose."""
    long: bool = False
    """Some have more digits than a number holds."""
    dates: frozenset[str] | None = None
    """Writings of a date that all fit, None without values."""
    units: frozenset[str] | None = None
    """The units beside a number that all have; None without values."""
    forms: set[str] = field(default_factory=set)
    """How the numbers beside units use commas and points: keys of `FORMS`."""
    low: float = np.inf
    high: float = -np.inf

    def merge(self, other: Writing) -> Writing:
        """The writing of the values of both."""
        dates = [each.dates for each in (self, other) if each.dates is not None]
        units = [each.units for each in (self, other) if each.units is not None]
        return Writing(
            tuple(dict.fromkeys((*self.few, *other.few)))[:FEW],
            self.numbers and other.numbers,
            self.whole and other.whole,
            self.zeros or other.zeros,
            self.long or other.long,
            frozenset.intersection(*dates) if dates else None,
            frozenset.intersection(*units) if units else None,
            self.forms | other.forms,
            min(self.low, other.low),
            max(self.high, other.high),
        )


FORMS = {
    "thousands": r"^[0-9]{1,3}(,[0-9]{3})+[.][0-9]+$|^[0-9]{1,3}(,[0-9]{3}){2,}$",
    "either": r"^[0-9]{1,3},[0-9]{3}$",
    "swapped": r"^[0-9]{1,3}([.][0-9]{3})+,[0-9]+$|^[0-9]{1,3}([.][0-9]{3}){2,}$",
    "comma": r"^[0-9]+,[0-9]+$",
    "point of three": r"^[0-9]{1,3}[.][0-9]{3}$",
    "point": r"^[0-9]*[.][0-9]+$",
    "digits": r"^[0-9]+$",
}
"""Form -> what has it, the first that fits: 1,350.00; 1,350; 1.350,00; 3,5; 1.350; 3.5; 12."""


def writing_of(column: Column, words: Sequence[str] | pa.Array, read: np.ndarray | None = None) -> Writing:
    """The writing of cleaned words, each different. `read`: the words as (N,) float64, NaN for those that are none."""
    array = words if isinstance(words, pa.Array) else pa.array(words, pa.string())
    if not len(array):
        return Writing()
    found = Writing(few=tuple(array.slice(0, FEW).to_pylist()))
    numbers = _floats(column, array) if read is None else _all_read(read)
    if numbers is not None:
        finite = numbers[np.isfinite(numbers)]
        if len(finite):
            found.low, found.high = float(finite.min()), float(finite.max())
    found.numbers = numbers is not None
    found.whole = found.numbers and _all(array, WHOLE)
    found.units = frozenset()
    if found.whole:
        found.zeros, found.long = _any(array, ZEROS), _any(array, LONG)
    if found.whole or not found.numbers:
        found.dates = _dates_of(array)
    else:
        found.dates = frozenset()
    if not found.numbers:
        found.units, found.forms = _units_of(column, array)
    return found


def writing_of_numbers(values: np.ndarray, *, integers: bool) -> Writing:
    """The writing of an array of numbers without missing ones. `integers`: of a type of whole numbers."""
    finite = values[np.isfinite(values)] if values.dtype.kind == "f" else values
    if not len(finite):
        return Writing(whole=integers)
    whole = integers or bool((finite == np.floor(finite)).all())
    low, high = finite.min(), finite.max()
    bound = 10**DIGITS_MAX
    long = integers and (int(high) >= bound or int(low) <= -bound)
    dates = frozenset({"%Y%m%d"}) if whole and not long and _are_dates(finite) else frozenset[str]()
    distinct = np.unique(finite[: 64 * FEW])
    if dates and len(distinct) < FEW:
        distinct = np.unique(finite)
    few = tuple(str(int(value)) if whole else repr(float(value)) for value in distinct[:FEW])
    return Writing(few, True, whole, False, long, dates, frozenset(), set(), float(low), float(high))


def _are_dates(values: np.ndarray) -> bool:
    """Whether all whole numbers are days of 1900 to 2099, as 20240713 is."""
    if values.min() < 19000101 or values.max() > 20991231:
        return False
    whole = values.astype(np.int64)
    month, day = whole // 100 % 100, whole % 100
    return bool(((month >= 1) & (month <= 12) & (day >= 1) & (day <= 31)).all())


def _all(array: pa.Array, pattern: str) -> bool:
    return bool(pc.all(pc.match_substring_regex(array, pattern)).as_py())


def _any(array: pa.Array, pattern: str) -> bool:
    return bool(pc.any(pc.match_substring_regex(array, pattern)).as_py())


def _floats(column: Column, array: pa.Array) -> np.ndarray | None:
    """(N,) float64 where every word is a number, else None."""
    if not column.unit and column.decimal == "." and not column.thousands:
        try:
            return array.cast(pa.float64()).to_numpy(zero_copy_only=False)
        except pa.ArrowInvalid:
            pass  # some are none, or only Python reads them
    return column.numbers_of(array.to_pylist())


def _all_read(read: np.ndarray) -> np.ndarray | None:
    return None if np.isnan(read).any() else read


def _dates_of(array: pa.Array) -> frozenset[str]:
    """The writings that every word fits."""
    candidates = date_writings(array[0].as_py())
    return frozenset(writing for writing in candidates if fits_date(array, writing).all())


def fits_date(array: pa.Array, writing: str) -> np.ndarray:
    """(N,) bool: whether each word is a date in this writing."""
    if writing in (ISO, ISO_BROKEN):
        fits = pc.match_substring_regex(array, ISO_STRICT if writing == ISO else ISO_LOOSE)
    else:
        fits = pc.match_substring_regex(array, date_pattern(writing))
    if "%Y%m" in writing:
        fits = pc.and_(fits, pc.match_substring_regex(array, CENTURIES))
    return np.asarray(fits.to_numpy(zero_copy_only=False), dtype=bool)


def date_writings(word: str) -> list[str]:
    """The writings in which one word is a date."""
    found = [ISO] if re.match(ISO_STRICT, word) else []
    found += [ISO_BROKEN] if re.match(ISO_LOOSE, word) else []
    if word.isdigit():
        return [WHOLE_DATES[len(word)]] if len(word) in WHOLE_DATES else []
    if _CTIME.match(word):
        return ["%a %b %d %H:%M:%S %Y"]
    weekday = _WEEKDAY.match(word)
    head = "" if weekday is None else "%a" + _mark(weekday[1])
    rest = word if weekday is None else word[weekday.end() :]
    for pattern, forms in _DATES:
        match = pattern.match(rest)
        if match is None:
            continue
        tail = _time_writing(rest[match.end() :])
        if tail is None:
            continue
        marks = [_mark(mark) for mark in match.groups()]
        found += [head + form.format(*marks) + tail for form in forms]
    return [writing for writing in found if writing in (ISO, ISO_BROKEN) or re.match(date_pattern(writing), word)]


def _time_writing(text: str) -> str | None:
    """The writing of what follows the day; None where it is no time."""
    if not text:
        return ""
    if re.match(r"^T[0-9]{6}$", text):
        return "T%H%M%S"
    match = _TIME.match(text)
    if match is None:
        return None
    half = match["p"] is not None
    found = _mark(match["gap"]) + ("%I" if half else "%H") + ":%M" + (":%S" if match["S"] else "")
    found += ".%f" if match["f"] else ""
    found += (_mark(match["pgap"]) + "%p") if half else ""
    return found + ((_mark(match["zgap"]) + "%z") if match["z"] else "")


def _mark(text: str) -> str:
    return re.sub(r"\s+", " ", text)


def unit_of(word: str) -> str | None:
    """The unit beside the number of one word; None where it is no number with a unit."""
    match = _WITH_UNIT.match(word)
    if match is None or (match["before"] and match["after"]):
        return None
    before, after = match["before"], match["after"]
    if before:
        return before if before in CURRENCIES else None
    if after and (match["gap"] or after in UNITS or after in CURRENCIES):
        return after
    return None


def _units_of(column: Column, array: pa.Array) -> tuple[frozenset[str], set[str]]:
    unit = unit_of(array[0].as_py())
    if unit is None:
        return frozenset(), set()
    forms = forms_of(column, array, unit)
    return (frozenset(), set()) if forms is None else (frozenset({unit}), forms)


def forms_of(column: Column, array: pa.Array, unit: str) -> set[str] | None:
    """The forms of the numbers beside a unit; None where a word lacks the unit or has no number beside it."""
    quoted = re.escape(unit)
    if not _all(array, rf"^[+-]?{quoted}\s*[+-]?[0-9.]|[0-9.]\s*{quoted}$"):
        return None
    left = pa.array([without_unit(word, unit).lstrip("+-") for word in array.to_pylist()], pa.string())
    if column.thousands or column.decimal != ".":
        return None if column.numbers_of(left.to_pylist()) is None else {"digits"}
    forms: set[str] = set()
    for form, pattern in FORMS.items():
        has = pc.match_substring_regex(left, pattern)
        if pc.any(has).as_py():
            forms.add(form)
            left = left.filter(pc.invert(has))
        if not len(left):
            return forms
    return None
