"""What kind of column this is, and by which rules it is read, where the spec does not say it.

Invariant: the answer depends on the set of values alone, and is the same for a table in memory and in pieces. What is
inferred beyond numbers, ISO dates and categories is said in a note; where values agree on a kind and allow two
readings, or are nearly all numbers or dates, that is an error that names the words or the lines of the spec.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import pyarrow as pa

from cluster.bundle.transforms import Column, Texts
from cluster.errors import DataError
from cluster.spec.data import DataSpec, WritingSpec
from cluster.spec.remedy import written_line
from trainers.data.read.columns import make_column, numbers_there, to_texts
from trainers.data.read.raw import Role
from trainers.data.read.reading import (
    Reading,
    choice,
    epoch_of,
    reading_of,
    sentence,
    sure_dates,
    unit_reading,
)
from trainers.data.read.writing import Writing, date_writings, fits_date, forms_of, writing_of, writing_of_numbers

CLASSES_AS_NUMBERS_MAX = 50  # a numeric target with more distinct values than this is a quantity
MOSTLY = 0.9  # a share of numbers or dates from which the rest are taken for mistakes
MOSTLY_WORDS_MIN = 20
TEXT_WORDS_MEAN = 3.0  # categories are names of a word or two; sentences have more
TEXT_VALUES_MIN = 65  # fewer different values than this are categories, however long
UNIQUE_VALUES_MIN = 101  # fewer different values than this may be categories of a small table
NEARLY_UNIQUE = 0.5  # a share of different values from which a category's mean row is the only one of its value
IDENTIFIER = 0.99  # the same share as of the quality report's identifiers
IDENTIFIER_WORDS_MEAN = 1.5  # values of several words are names and titles, and say something
IDENTIFIER_WHY = "nearly each row has a value of its own: an identifier"
THOUSANDS = re.compile(r"^[+-]?\d{1,3}(,\d{3})+(\.\d+)?$")


@dataclass(frozen=True)
class Look:
    """What is known of a column's values."""

    kind: pa.DataType
    writing: Writing
    words: tuple[str, ...] = ()
    """Different texts, or the first of them."""
    there: int = 0
    """Rows with a value."""
    different: int = 0
    """Different texts, also those that `words` has no room for; an estimate beyond some thousands."""
    not_numbers: int = 0
    """Rows with a text that is no value where the others are numbers."""
    infinite: int = 0
    """Rows with an infinite number."""


@dataclass(frozen=True)
class Inferred:
    """The role of a column and the rules by which it is read."""

    role: Role
    column: Column
    note: str = ""
    """What was inferred, as a sentence; empty for what everybody expects."""
    identifier: bool = False
    """Nearly each row has a value of its own, which says nothing."""


def infer_column(spec: DataSpec, name: str, values: pa.ChunkedArray) -> Inferred:
    """The reading of a whole column. Raises DataError."""
    return decide(spec, name, look_at(spec, name, values))


def look_at(spec: DataSpec, name: str, values: pa.ChunkedArray) -> Look:
    """Everything of a column that its reading depends on."""
    kind = values.type.value_type if pa.types.is_dictionary(values.type) else values.type
    if is_number(kind):
        numbers = numbers_there(values.cast(kind))
        writing = writing_of_numbers(numbers, integers=pa.types.is_integer(kind))
        words = to_texts(make_column(spec, name), values).words if writing.long else ()
        there = len(numbers) - int(np.isnan(numbers).sum())
        return Look(kind, writing, words, there, infinite=int(np.isinf(numbers).sum()))
    if is_text(kind):
        texts = to_texts(make_column(spec, name), values)
        column = make_column(spec, name, "number")
        said = _said(column, texts.words)
        writing = writing_of(column, said)
        unread, infinite = {*texts.words} - {*said}, set[str]()
        for word in said if writing.numbers else ():
            if "n" in word.lower() or "e" in word.lower():  # NAN, inf, 1e999
                number = column.number_of(word)
                (unread if np.isnan(number) else infinite if np.isinf(number) else set()).add(word)
        return Look(
            kind, writing, texts.words, int((texts.codes >= 0).sum()),
            not_numbers=_rows_of(texts, unread), infinite=_rows_of(texts, infinite),
        )  # fmt: skip
    return Look(kind, Writing(), there=len(values) - values.null_count)


def _rows_of(texts: Texts, words: set[str]) -> int:
    """Rows that have one of the words."""
    if not words:
        return 0
    places = [place for place, word in enumerate(texts.words) if word in words]
    return int(np.isin(texts.codes, places).sum())


def _said(column: Column, words: Sequence[str]) -> tuple[str, ...]:
    """The words that say something of a column's kind: a text of `missing` does not, in quotes or not."""
    return tuple(word for word in words if not column.is_missing(word))


def target_column(spec: DataSpec, words: Sequence[str]) -> Column | None:
    """The rules by which the target's different words are numbers; None where they are labels. Raises DataError."""
    column = make_column(spec, spec.target, "number")
    _refuse_quoted(spec, column, words)
    writing = writing_of(column, words)
    if writing.numbers:
        codes = writing.whole and (writing.zeros or writing.long)
        return None if codes and spec.task != "regression" else column
    few = len(words) <= CLASSES_AS_NUMBERS_MAX and spec.task != "regression"
    if few or spec.task == "classification" or not writing.units:
        return None
    reading = unit_reading(next(iter(writing.units)), writing.forms)
    look = Look(pa.string(), writing, tuple(words))
    return None if reading is None else _with(column, "number", _settled(spec.target, reading, look))


def _refuse_quoted(spec: DataSpec, column: Column, words: Sequence[str]) -> None:
    """Raise DataError for a quantity among whose values a text of `missing` stands in quotes."""
    said = _said(column, words)
    if len(said) == len(words) or (len(said) <= CLASSES_AS_NUMBERS_MAX and spec.task != "regression"):
        return
    if writing_of(column, said).numbers:
        others = sorted({*words} - {*said})
        raise DataError(
            f"Cannot use '{spec.target}' as the target",
            found=f"its values are numbers, and {others[0]!r} in quotes",
            rule="the file quotes its texts, so that a text of data.source.missing in quotes is a value",
            remedy="Set data.source.quoted_missing: missing.",
        )


def is_number(kind: pa.DataType) -> bool:
    """Whether a type holds numbers; true and false are 1 and 0."""
    return bool(pa.types.is_floating(kind) or pa.types.is_integer(kind) or pa.types.is_boolean(kind))


def is_text(kind: pa.DataType) -> bool:
    """Whether a type holds words."""
    return bool(pa.types.is_string(kind) or pa.types.is_large_string(kind))


def decide(spec: DataSpec, name: str, look: Look) -> Inferred:
    """The reading of a column, as declared or by its values. Raises DataError."""
    declared = spec.columns.get(name)
    if declared in ("category", "text"):
        return Inferred(declared, make_column(spec, name))
    column = make_column(spec, name, "number")
    look = replace(look, words=_said(column, look.words))
    if isinstance(declared, WritingSpec) and declared.date is not None:
        return Inferred("date", _with(column, "date", {"date": declared.date}))
    if isinstance(declared, WritingSpec):
        return Inferred("number", _with(column, "number", _unit_rules(column, declared, look)))
    if declared == "number":
        reading = Reading("number", {}) if look.writing.numbers else reading_of(name, look.writing)
        rules = _settled(name, reading, look) if reading.kind == "unit" else {}
        return Inferred("number", _with(column, "number", rules))
    if declared == "date":
        return Inferred("date", _with(column, "date", _date_rules(name, look)))
    return _undeclared(spec, column, look)


def _undeclared(spec: DataSpec, column: Column, look: Look) -> Inferred:
    name, kind = column.name, look.kind
    if pa.types.is_boolean(kind):
        return Inferred("number", _with(column, "number", {}))
    if pa.types.is_temporal(kind):
        return Inferred("date", _with(column, "date", {}))
    if pa.types.is_null(kind):
        return Inferred("category", make_column(spec, name))  # without a word
    if not is_number(kind) and not is_text(kind):
        raise DataError(
            f"Cannot use column '{name}'",
            found=f"it has the type {kind}",
            rule="a column holds numbers, texts, booleans or dates",
            remedy=f"Add it to data.drop_columns, or store it as another type. ({name})",
        )
    reading = reading_of(name, look.writing)
    if is_number(kind) and reading.kind == "words":  # without any value
        reading = Reading("number", {})
    note = sentence(reading, look.writing) if reading.other is None else ""
    note = f"column '{name}': {note}; {_otherwise(name, reading, look.writing)}" if note else ""
    if reading.kind in ("date", "unit"):
        role: Role = "date" if reading.kind == "date" else "number"
        return Inferred(role, _with(column, role, _settled(name, reading, look)), note)
    if reading.kind == "number":
        return Inferred("number", _with(column, "number", {}))
    if reading.kind == "words":
        refuse_mixed(column, look.words)
    return _of_words(spec, make_column(spec, name), look, note)


def _of_words(spec: DataSpec, column: Column, look: Look, note: str) -> Inferred:
    """Category or text, by how many words there are and how often each comes."""
    num_words = max(len(look.words), len(look.writing.few), look.different)
    mean_words = sum(word.count(" ") + 1 for word in look.words) / max(len(look.words), 1)
    if num_words >= TEXT_VALUES_MIN and mean_words > TEXT_WORDS_MEAN:
        return Inferred("text", column, note)
    share = num_words / max(look.there, 1)
    if num_words < UNIQUE_VALUES_MIN or share < NEARLY_UNIQUE:
        return Inferred("category", column, note)
    if share >= IDENTIFIER and mean_words <= IDENTIFIER_WORDS_MEAN:
        return Inferred("category", column, note, identifier=True)
    if spec.encode.category != "one_hot" or spec.encode.text != "word_counts":
        return Inferred("category", column, note)
    said = f"column '{column.name}': {num_words:,} of {look.there:,} values are different: read as text; \
{written_line(column.name, 'category')} makes categories of them"
    return Inferred("text", column, "; ".join(part for part in (note, said) if part))


def _with(column: Column, kind: str, rules: dict[str, str]) -> Column:
    return Column.model_validate({**column.model_dump(), "kind": kind, **rules})


def _otherwise(name: str, reading: Reading, writing: Writing) -> str:
    """How a reading is overruled."""
    kind = "number" if reading.kind == "code" or writing.numbers else "category"
    return f"{written_line(name, kind)} reads them otherwise"


def _settled(name: str, reading: Reading, look: Look) -> dict[str, str]:
    """The rules of a reading. Raises DataError where the values allow a second one."""
    if reading.other is None:
        return reading.rules
    raise DataError(
        f"Cannot read column '{name}'",
        found=sentence(reading, look.writing),
        rule="values are read in one way, which they show or the spec says",
        remedy=f"Set {choice(name, reading)}; {written_line(name, 'category')} keeps the words.",
    )


def _unit_rules(column: Column, declared: WritingSpec, look: Look) -> dict[str, str]:
    """The rules of declared numbers: separators as they are declared, or as the numbers show them. Raises DataError for
    two readings."""
    told = {part: text for part in ("unit", "thousands", "decimal") if (text := getattr(declared, part)) is not None}
    if declared.unit is None or {"thousands", "decimal"} & told.keys():
        return {"thousands": "", "decimal": ".", **told}
    if not look.words or look.writing.numbers or column.thousands or column.decimal != ".":
        return told
    beside = [word for word in look.words if declared.unit in word]
    forms = forms_of(column, pa.array(beside, pa.string()), declared.unit) if beside else None
    reading = unit_reading(declared.unit, forms) if forms else None
    if reading is None:
        return told
    return _settled(column.name, reading, look)


def _date_rules(name: str, look: Look) -> dict[str, str]:
    """The writing of a column that is declared to hold dates. Raises DataError for two readings, and for numbers that
    are no dates."""
    if pa.types.is_temporal(look.kind):
        return {}
    found = sure_dates(look.writing)
    if found:
        other = {"date": found[1]} if len(found) > 1 else None
        return _settled(name, Reading("date", {"date": found[0]}, other), look)
    if look.writing.numbers and look.writing.few:
        epoch = epoch_of(name, look.writing, declared=True)
        if epoch is None:
            raise DataError(
                f"Cannot read the dates of column '{name}'",
                found=f"it holds numbers such as {', '.join(look.writing.few[:3])}",
                rule="numbers are dates as 20241231, or as seconds or less since 1970 in the years 1990 to 2039",
                remedy=f"Say how they are written, such as {written_line(name, '{date: epoch_s}')}.",
            )
        return {"date": epoch}
    refuse_mostly_dates(name, look.words)
    return {}


def refuse_mixed(column: Column, words: Sequence[str]) -> None:
    """Raise DataError for words that are nearly all numbers or dates, and for numbers with separators."""
    numbers = [word for word in words if _is_number(column, word)]
    if not column.thousands:
        _refuse_thousands(column, words, len(numbers))
    if len(words) >= MOSTLY_WORDS_MIN and len(numbers) >= MOSTLY * len(words):
        others = [repr(word) for word in words if not _is_number(column, word)]
        raise DataError(
            f"Cannot use column '{column.name}'",
            found=f"{len(numbers)} of its {len(words)} different values are numbers, but not {', '.join(others[:5])}",
            rule="a column holds numbers or texts, not both",
            remedy=f"Add these words to data.source.missing, or declare data.columns.{column.name}: category.",
        )
    refuse_mostly_dates(column.name, words)


def _refuse_thousands(column: Column, words: Sequence[str], num_numbers: int) -> None:
    with_marks = [word for word in words if THOUSANDS.match(word)]
    if words and with_marks and len(with_marks) + num_numbers >= MOSTLY * len(words):
        example = next(word for word in words if THOUSANDS.match(word) or not _is_number(column, word))
        if THOUSANDS.match(example):
            raise DataError(
                f"Cannot use column '{column.name}'",
                found=f"it holds numbers with separators of thousands, such as {example!r}",
                rule="a number has no separators",
                remedy='Set data.source.thousands: ",".',
            )


def refuse_mostly_dates(name: str, words: Sequence[str]) -> None:
    """Raise DataError for words that are nearly all dates in one writing."""
    if len(words) < MOSTLY_WORDS_MIN:
        return
    array = pa.array(words, pa.string())
    for writing in sorted({form for word in words[:3] for form in date_writings(word)}):
        fits = fits_date(array, writing)
        if fits.mean() >= MOSTLY and not fits.all():
            others = [repr(words[int(place)]) for place in np.flatnonzero(~fits)]
            raise DataError(
                f"Cannot use column '{name}'",
                found=f"{int(fits.sum())} of its {len(words)} different values are dates, but not \
{', '.join(others[:5])}",
                rule="a column holds dates or texts, not both",
                remedy=f"Add these words to data.source.missing, or declare {written_line(name, 'category')}.",
            )


def _is_number(column: Column, word: str) -> bool:
    try:
        column.number_of(word)
    except ValueError:
        return False
    return True
