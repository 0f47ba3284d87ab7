"""The first bytes of a delimited text file -> how it is written, each part with its reason.

    found = find_dialect(head, source)      # what `source` says stands; what it leaves `auto` is found

Invariant: a pure function of the bytes and the source. What the bytes do not settle is an error that shows both
readings, never a guess. This module knows files alone; what a column's values mean is infer.py's.

Covered: comments, lines before and after the table, delimiter, header, decimal mark, quotes around texts.
Not covered: encodings (the caller decodes), quoting marks.
"""

from __future__ import annotations

import csv
import itertools
import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from cluster.errors import DataError
from cluster.spec.data import CsvSource

DELIMITERS = ",;\t|"
MARKS = {",": "comma", ";": "semicolon", "\t": "tab", "|": "bar", " ": "space"}
COMMENTS = ("#", "%")
RECORDS_MAX = 2_000  # of the head that are looked at
AGREE = 0.9  # share of the lines that have one number of fields; the reader names the lines that have not
NEARLY = 0.5  # where no delimiter does better: the reader then says which line is ragged
CLEAR = 0.9  # share of cells without another delimiter in them, from which a reading is accepted
REPEATED = 8  # rows from which a word that never comes again is no value of its column
SHOWN = 4  # cells of a reading in an error
LINE_END = re.compile(r"\r\n|\n|\r")  # a lone carriage return ends the lines of old Macintosh files
POINT = re.compile(r"^[+-]?(\d+\.?\d*|\.\d+)([eE][+-]?\d+)?$")
COMMA = re.compile(r"^[+-]?([1-9]\d{0,2}(\.\d{3})+|\d*),\d+$")
GROUPS = re.compile(r"^[+-]?[1-9]\d{0,2}(,\d{3})+(\.\d+)?$")
POINT_GROUPS = re.compile(r"^[+-]?[1-9]\d{0,2}(\.\d{3})+(,\d+)?$")
EITHER = re.compile(r"^[+-]?[1-9]\d{0,2},\d{3}$")  # "1,234" is 1234 or 1.234
DATE = re.compile(r"^(\d{4}[-./]\d{1,2}[-./]\d{1,2}|\d{1,2}[-./]\d{1,2}[-./]\d{2,4})([T ].*)?$")
TOTAL_ALONE = re.compile(r"^\W*(grand |sub)?(total|sum|summe|gesamt|average|mean|count)s?\W*$", re.I)
TOTAL = re.compile(r"^\W*(grand |sub)?(total|sum|summe|gesamt|average|mean|count|rows?)s?\b|^\(?\d+ rows?\)?$", re.I)


@dataclass
class Dialect:
    """A source without any `auto`, and why each of them became what it is."""

    source: CsvSource
    reasons: dict[str, str] = field(default_factory=dict)
    """Key of the source -> sentence."""

    def settle(self, reason: str, **values: Any) -> None:
        """Set what was `auto`."""
        self.source = self.source.model_copy(update=values)
        self.reasons |= dict.fromkeys(values, reason)


def find_dialect(head: str, source: CsvSource, *, tail: str = "", name: str = "the file") -> Dialect:
    """Settle every `auto` of the source. `head`: whole lines from the file's start; `tail`: its last lines.

    Raises DataError for a file that can be read in two ways, and where no delimiter divides the lines.
    """
    found = Dialect(source)
    lines = LINE_END.split(head)
    if isinstance(source.skip_lines, int):
        lines = lines[source.skip_lines :]
    if all(getattr(source, key) != "auto" for key in ("delimiter", "header", "skip_lines", "skip_last_lines",
                                                      "comment", "decimal")):  # fmt: skip
        _quoted_missing(found, lines)
        return found
    lines = _without_comments(found, lines)
    records = _delimiter(found, lines, name)
    width = _width(records)
    records = _skip_lines(found, lines, records, width, name)
    _last_lines(found, tail, width)
    if isinstance(found.source.skip_last_lines, int) and found.source.skip_last_lines and head.endswith(tail):
        records = records[: -found.source.skip_last_lines]
    _header(found, records, width, name)
    body = records[1:] if found.source.header else records
    _decimal(found, body, width, name)
    _quoted_missing(found, lines)
    return found


def _without_comments(found: Dialect, lines: list[str]) -> list[str]:
    if found.source.comment == "auto":
        first = next((line for line in lines if line.strip()), "")
        mark = next((mark for mark in COMMENTS if first.startswith(mark)), None)
        why = "no line at the top begins with # or %"
        found.settle(f"the file begins with {_short(first)}" if mark else why, comment=mark)
    mark = found.source.comment
    return [line for line in lines if not line.startswith(mark)] if mark else lines


def _records(lines: Sequence[str], source: CsvSource, delimiter: str) -> list[list[str]]:
    quoting: Any = csv.QUOTE_MINIMAL if source.quote else csv.QUOTE_NONE
    reader = csv.reader(
        (line + "\n" for line in lines), delimiter=delimiter, quotechar=source.quote or '"', quoting=quoting
    )
    records: list[list[str]] = []
    for record in reader:
        if any(cell.strip() for cell in record):
            records.append([cell.strip() for cell in record])
        if len(records) == RECORDS_MAX:
            break
    return records


def _width(records: Sequence[Sequence[str]]) -> int:
    """Fields of most records; of two numbers that are as frequent, the larger one."""
    counts = Counter(len(record) for record in records)
    return max(counts, key=lambda width: (counts[width], width), default=0)


def _delimiter(found: Dialect, lines: list[str], name: str) -> list[list[str]]:
    """The records by the source's delimiter, which is found where it is `auto`."""
    source = found.source
    if source.delimiter != "auto":
        return _records(lines, source, source.delimiter)
    readings = _readings(lines, source)
    if not readings:
        raise _undivided(lines, name)
    # lines that all have as many fields tell more than lines with a title or a text that happens to agree
    whole = [mark for mark, records in readings.items() if len({len(record) for record in records}) == 1]
    clear = {mark: _clear_share(records, [*readings]) for mark, records in readings.items()}
    best = whole if len(whole) == 1 else [mark for mark in readings if clear[mark] >= CLEAR]
    if len(readings) > 1 and len(best) != 1:
        one, other = sorted(readings, key=lambda mark: -clear[mark])[:2]
        raise DataError(
            f"Cannot tell the delimiter of {name}",
            found=f"with {one!r} a line reads {_reading(readings[one])}; with {other!r} it reads "
            f"{_reading(readings[other])}",
            rule="`auto` takes the delimiter that alone divides the lines evenly",
            remedy=f"Set data.source.delimiter: {one!r} or {other!r} (manta data check: --delimiter).",
        )
    mark = best[0] if len(readings) > 1 else next(iter(readings))
    records = readings[mark]
    share = "each line has" if mark in whole else "most lines have"
    found.settle(f"{share} {_width(records)} fields with a {MARKS[mark]}", delimiter=mark)
    return records


def _readings(lines: list[str], source: CsvSource) -> dict[str, list[list[str]]]:
    """The records by each delimiter that divides the lines evenly; where none does, by the one that nearly does."""
    every = {mark: _records(lines, source, mark) for mark in DELIMITERS}
    several = {mark: records for mark, records in every.items() if _width(records) > 1}
    even = {mark: records for mark, records in several.items() if _agreeing(records) >= AGREE}
    if even:
        return even
    if spaced := _spaced(lines, source):
        return {" ": spaced}
    mark = max(several, key=lambda mark: _agreeing(several[mark]), default="")
    return {mark: several[mark]} if mark and _agreeing(several[mark]) >= NEARLY else {}


def _agreeing(records: list[list[str]]) -> float:
    """Share of the records, from the first one with as many fields as most, that have as many."""
    width = _width(records)
    agreeing = sum(len(record) == width for record in records)
    return agreeing / (len(records) - next(at for at, record in enumerate(records) if len(record) == width))


def _clear_share(records: list[list[str]], marks: list[str]) -> float:
    """Share of cells that are numbers, or hold no other delimiter that would divide the lines as well."""
    cells = [cell for record in records if len(record) > 1 for cell in record]
    clear = sum(_is_number(cell) or not any(mark in cell for mark in marks) for cell in cells)
    return clear / max(len(cells), 1)


def _spaced(lines: list[str], source: CsvSource) -> list[list[str]]:
    """The records by single spaces, where all lines agree."""
    records = _records(lines, source, " ")
    width = _width(records)
    even = all(len(record) == width and all(record) for record in records)
    return records if even and width > 1 and len(records) > 2 else []


def _undivided(lines: list[str], name: str) -> DataError:
    first = next((line for line in lines if line.strip()), "")
    return DataError(
        f"Cannot read {name}",
        found=f"no comma, semicolon, tab, bar or space divides its lines evenly; the first is {_short(first)}",
        rule="a table needs a feature beside its target",
        remedy="Set data.source.delimiter (manta data check: --delimiter).",
    )


def _skip_lines(found: Dialect, lines: list[str], records: list[list[str]], width: int, name: str) -> list[list[str]]:
    """Records from the table's first line on."""
    if found.source.skip_lines != "auto":
        return records
    title = next((at for at, record in enumerate(records) if len(record) == width), 0)
    if not title:
        found.settle(f"the first line has {width} fields, as most have", skip_lines=0)
        return records
    last = records[title - 1]
    if len(last) > 1 and _vote(records[title:], width).header is not True:
        raise DataError(
            f"Cannot tell where the table of {name} begins",
            found=f"its lines have {width} fields, and {_reading([last])} has {len(last)}: names with one left out, or "
            "a line before a table without a header",
            rule="a header has as many names as the lines have fields",
            remedy=f"Mend the header, or set data.source.skip_lines: {title} and header: false.",
        )
    blank = 0
    for number, line in enumerate(lines):
        blank += not line.strip()
        if number + 1 - blank == title:
            skipped = number + 1
            break
    found.settle(f"the lines before, such as {_reading([last])}, have other fields than the {width} of the table",
                 skip_lines=skipped)  # fmt: skip
    return records[title:]


@dataclass(frozen=True)
class _Vote:
    header: bool | None
    """None: nothing settles it, or one column says so and another one otherwise."""
    why: str


def _header(found: Dialect, records: list[list[str]], width: int, name: str) -> None:
    source = found.source
    if source.header != "auto":
        return
    if len(records) < 2:
        found.settle("the file has one line", header=True)
        return
    vote = _vote(records, width)
    if vote.header is None:
        first = _reading(records)
        numbered = ", ".join(f"column_{at + 1}" for at in range(min(width, 2)))
        raise DataError(
            f"Cannot tell whether the first line of {name} is a header",
            found=f"as a header it names the columns {first}; as a row of the columns {numbered}, … it holds {first}, "
            f"and the next row {_reading(records[1:])}",
            rule=vote.why,
            remedy="Set data.source.header: true or false, and names (manta data check: --header true or false).",
        )
    found.settle(vote.why, header=vote.header)


def _vote(records: list[list[str]], width: int) -> _Vote:
    """What the columns say of the first record, which is compared with the values below it."""
    first, rows = records[0], [row for row in records[1:] if len(row) == width and row != records[0]]
    if len(first) != width or not rows:
        return _Vote(None, "there is no other line to compare it with")
    names: list[str] = []
    values: list[str] = []
    weak: list[str] = []
    running = _running(first)
    for at, cell in enumerate(first):
        column = [row[at] for row in rows if row[at]]
        kind = _kind(column)
        if not column or not cell:
            continue
        if kind is not None:
            same = _kind([cell]) == kind
            if not same and not _is_missing(cell):
                names.append(f"{_short(cell)} stands over {kind}s such as {_short(column[0])}")
            elif same and not running:
                values.append(f"{_short(cell)} is a {kind}, as those below it")
        elif cell in column:
            values.append(f"{_short(cell)} comes again in its column")
        elif len(column) >= REPEATED and min(Counter(column).values()) > 1:
            weak.append(f"{_short(cell)} is none of the {len(set(column))} words that repeat below it")
    if names and values:
        return _Vote(None, f"one column says header ({names[0]}), another one says row ({values[0]})")
    if names or (weak and not values):
        return _Vote(True, (names or weak)[0])
    if values:
        return _Vote(False, values[0])
    return _Vote(None, "nothing in the columns distinguishes names from values")


def _running(first: list[str]) -> bool:
    """Whether the line's numbers count up one by one, as years and positions do that are names."""
    numbers = [int(cell) for cell in first if cell.isdecimal()]
    return len(numbers) > 1 and all(b - a == 1 for a, b in itertools.pairwise(numbers))


def _kind(cells: Sequence[str]) -> str | None:
    """`number` or `date` where all cells that are not missing are one."""
    there = [cell for cell in cells if not _is_missing(cell)]
    if not there:
        return None
    if all(_is_number(cell) for cell in there):
        return "number"
    return "date" if all(DATE.match(cell) for cell in there) else None


def looks_like_row(names: Sequence[str]) -> bool:
    """Whether a line that was read as a header holds numbers, as rows do."""
    return any(_is_number(name) for name in names)


def _is_number(cell: str) -> bool:
    return bool(POINT.match(cell) or COMMA.match(cell) or GROUPS.match(cell) or POINT_GROUPS.match(cell))


def _is_missing(cell: str) -> bool:
    return cell.lower() in ("", "?", "na", "n/a", "nan", "null", "none", "-")


def _decimal(found: Dialect, body: list[list[str]], width: int, name: str) -> None:
    source = found.source
    if source.decimal != "auto":
        return
    rows = [row for row in body if len(row) == width]
    cells = [cell for at in range(width) if _kind(column := [row[at] for row in rows]) == "number" for cell in column]
    commas = [cell for cell in cells if COMMA.match(cell) and not EITHER.match(cell)]
    points = [cell for cell in cells if ("." in cell and POINT.match(cell) and not POINT_GROUPS.match(cell))
              or (GROUPS.match(cell) and not EITHER.match(cell))]  # fmt: skip
    either = [cell for cell in cells if EITHER.match(cell)]
    grouped = [cell for cell in cells if POINT_GROUPS.match(cell)]
    if (commas and points) or (either and not commas and not points and source.delimiter != ","):
        both = f"{_short(commas[0])} and {_short(points[0])}" if commas else f"{_short(either[0])}"
        raise DataError(
            f"Cannot tell the decimal mark of {name}",
            found=f"it holds {both}: " + ("one has a decimal comma, the other one a decimal point" if commas else
                  f"with a decimal comma that is {either[0].replace(',', '.')}, with separators of thousands "
                  f"{either[0].replace(',', '')}"),
            rule="a file has one decimal mark",
            remedy="Set data.source.decimal: ',', or decimal: '.' with thousands: ',' "
                   "(manta data check: --decimal).",
        )  # fmt: skip
    if commas:
        thousands = source.thousands or ("." if grouped else "")
        found.settle(f"{_short(commas[0])} is a number with a decimal comma", decimal=",", thousands=thousands)
        return
    thousands = source.thousands
    if not thousands and any(GROUPS.match(cell) for cell in cells):
        thousands = ","
    why = f"{_short(points[0])} has a decimal point" if points else "no number has a decimal comma"
    found.settle(why, decimal=".", thousands=thousands)


def _last_lines(found: Dialect, tail: str, width: int) -> None:
    source = found.source
    if source.skip_last_lines != "auto":
        return
    rows = [line for line in LINE_END.split(tail) if line.strip()]
    records = [next(iter(_records([line], source, source.delimiter)), []) for line in rows]
    count = 0
    while count < len(rows) - 1 and _is_total(records[-1 - count], records[: -1 - count], width):
        count += 1
    example = rows[-count] if count else ""
    why = f"{_short(example)} is a line of totals" if count else "the last line is a row"
    found.settle(why, skip_last_lines=count)


def _is_total(record: list[str], before: list[list[str]], width: int) -> bool:
    """Whether a last line begins with a word of totals that no line before it begins with."""
    first = next((cell for cell in record if cell), "")
    if any(first in row for row in before):
        return False
    return bool(TOTAL.match(first)) and (len(record) != width or bool(TOTAL_ALONE.match(first)))


def _quoted_missing(found: Dialect, lines: list[str]) -> None:
    """Whether quotes tell texts from numbers: most texts have them, and not all else has."""
    source = found.source
    if source.quoted_missing != "auto":
        return
    mark = source.quote
    if mark is None or not any(mark in line for line in lines):
        found.settle("the file has no quotes", quoted_missing="missing")
        return
    field_of = re.compile(f"{mark}(?:[^{mark}]|{mark}{mark})*{mark}|[^{re.escape(source.delimiter)}]+")
    texts, others = Counter[bool](), Counter[bool]()
    for line in lines[1:RECORDS_MAX]:
        for cell in field_of.findall(line):
            quoted, word = cell.startswith(mark), cell.strip(mark + " ")
            if word:
                (others if _is_number(word) or word in source.missing else texts)[quoted] += 1
    if texts[True] >= AGREE * texts.total() > 0 and (others[False] or not others.total()):
        found.settle("the file quotes its texts", quoted_missing="value")
    else:
        why = "the file quotes all fields" if texts[True] >= AGREE * texts.total() else "it quotes few of its texts"
        found.settle(f"{why}, so that quotes do not tell values", quoted_missing="missing")


def _reading(records: list[list[str]]) -> str:
    cells = records[0] if records else []
    return "[" + ", ".join(_short(cell) for cell in cells[:SHOWN]) + (", …]" if len(cells) > SHOWN else "]")


def _short(text: str) -> str:
    return repr(text if len(text) <= 30 else text[:29] + "…")
