"""How a date is written: `%d/%m/%Y %H:%M` as a pattern that finds its parts in a text.

Invariant: one pattern decides what a writing is, for whoever looks for the writing of a column and for whoever reads
its values; it is understood alike by Python's `re` and by RE2 (Arrow). A text that does not fit the pattern is no date.

Covered: the directives of strptime that say a moment, English names of months and days, `epoch_s`, `epoch_ms`,
`epoch_us` and `epoch_ns` for numbers that count from 1970-01-01 UTC. Not covered: names in other languages, weeks.
"""

from __future__ import annotations

import re
from functools import lru_cache

EPOCHS = {"epoch_s": 1.0, "epoch_ms": 1e3, "epoch_us": 1e6, "epoch_ns": 1e9}
"""Writing -> counts in a second."""
MONTHS = ("jan", "feb", "mar", "apr", "may", "jun", "jul", "aug", "sep", "oct", "nov", "dec")
MONTH = (
    "(?:jan(?:uary)?|feb(?:ruary)?|mar(?:ch)?|apr(?:il)?|may|june?|july?|aug(?:ust)?|sept?(?:ember)?|oct(?:ober)?"
    "|nov(?:ember)?|dec(?:ember)?)"
)
WEEKDAY = "(?:mon(?:day)?|tue(?:s|sday)?|wed(?:nesday)?|thu(?:rs|rsday)?|fri(?:day)?|sat(?:urday)?|sun(?:day)?)"
FIXED = {"m": "0[1-9]|1[0-2]", "d": "0[1-9]|[12][0-9]|3[01]", "H": "[01][0-9]|2[0-3]", "I": "0[1-9]|1[0-2]"}
"""Parts of two digits, where other digits stand beside them."""
LOOSE = {"m": "0?[1-9]|1[0-2]", "d": "0?[1-9]|[12][0-9]|3[01]", "H": "[01]?[0-9]|2[0-3]", "I": "0?[1-9]|1[0-2]"}
PARTS = {
    "Y": "[0-9]{4}", "y": "[0-9]{2}", "M": "[0-5][0-9]", "S": "[0-5][0-9]", "f": "[0-9]{1,9}", "b": MONTH, "B": MONTH,
    "p": "[ap][.]?m[.]?", "z": "z|utc|gmt|[+-][0-9]{2}:?[0-9]{2}",
}  # fmt: skip
UNNAMED = {"a": WEEKDAY, "A": WEEKDAY, "%": "%"}
DIRECTIVES = (*FIXED, *PARTS, *UNNAMED)
DIGITS = frozenset("YymdHIMSf")
SAME = {"B": "b"}


def check_date_format(text: str) -> str:
    """The format as it is. Raises ValueError for one that does not say a day, or that no date has."""
    if text in EPOCHS:
        return text
    parts = [part for kind, part in split_format(text) if kind]
    unknown = [part for part in parts if part not in DIRECTIVES]
    known = ", ".join(f"%{part}" for part in DIRECTIVES if part != "%")
    if unknown:
        raise ValueError(f"must be made of {known}; %{unknown[0]} is none of them")
    said = [SAME.get(part, part) for part in parts if part not in UNNAMED]
    twice = sorted({part for part in said if said.count(part) > 1})
    if twice or {"Y", "y"} <= set(said) or {"b", "m"} <= set(said) or {"H", "I"} <= set(said):
        raise ValueError("must name the year, month, day, hour, minute and second once each at most")
    if not {"Y", "y"} & set(said):
        raise ValueError(f"must hold a year, such as %d/%m/%Y %H:%M, or be one of {', '.join(EPOCHS)}")
    if "d" in said and not {"m", "b"} & set(said):
        raise ValueError("must hold the month of its day: %m, or %b for a name")
    if ("I" in said) != ("p" in said):
        raise ValueError("must hold %I and %p together: an hour of 12 needs AM or PM")
    return text


def split_format(text: str) -> list[tuple[bool, str]]:
    """(is a directive, its letter or the literal text) in order."""
    found: list[tuple[bool, str]] = []
    for piece in re.findall(r"%.?|[^%]+", text, flags=re.DOTALL):
        found.append((True, piece[1:]) if piece.startswith("%") else (False, piece))
    return found


@lru_cache(maxsize=256)
def date_pattern(text: str) -> str:
    """The regular expression of a whole text in this writing, its parts as named groups; for RE2 and Python alike."""
    pieces = split_format(text)
    pattern = ""
    for place, (directive, piece) in enumerate(pieces):
        if not directive:
            pattern += re.sub(r"(\\? )+", "[ \\t\u00a0\u202f]+", re.escape(piece).replace("\\/", "/"))
        elif piece in UNNAMED:
            pattern += UNNAMED[piece]
        elif piece in FIXED:
            beside = [pieces[at] for at in (place - 1, place + 1) if 0 <= at < len(pieces)]
            tight = any(is_part and part in DIGITS for is_part, part in beside)
            ordinal = "" if tight or piece != "d" else "(?:st|nd|rd|th)?"
            pattern += f"(?P<{piece}>{(FIXED if tight else LOOSE)[piece]}){ordinal}"
        else:
            pattern += f"(?P<{SAME.get(piece, piece)}>{PARTS[piece]})"
    return f"(?i)^(?:{pattern})$"
