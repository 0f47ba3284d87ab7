"""What kind of column this is, where the spec does not say it.

Invariant: the answer depends on the set of values alone. A column that is nearly all numbers is never silently taken
for a category: that is an error that names the words in the way.
"""

from __future__ import annotations

import re

import pyarrow as pa

from cluster.bundle.transforms import Column
from cluster.errors import DataError
from cluster.spec.data import DataSpec
from trainers.data.read.columns import make_column, to_texts
from trainers.data.read.raw import Role

MOSTLY = 0.9  # a share of numbers from which the rest are taken for mistakes
TEXT_WORDS_MEAN = 3.0  # categories are names of a word or two; sentences have more
TEXT_VALUES_MIN = 65  # fewer different values than this are categories, however long
THOUSANDS = re.compile(r"^[+-]?\d{1,3}(,\d{3})+(\.\d+)?$")
ISO_DATE = re.compile(r"^\d{4}-\d{2}-\d{2}([T ].*)?$")


def infer_role(spec: DataSpec, name: str, values: pa.ChunkedArray) -> Role:
    """The declared role of a column, else that of its values. Raises DataError for numbers mixed with words."""
    declared = spec.columns.get(name)
    if declared is not None:
        return declared  # type: ignore[return-value]
    kind = values.type.value_type if pa.types.is_dictionary(values.type) else values.type
    if pa.types.is_boolean(kind) or pa.types.is_floating(kind) or pa.types.is_integer(kind):
        return "number"
    if pa.types.is_temporal(kind):
        return "date"
    if not (pa.types.is_string(kind) or pa.types.is_large_string(kind)):
        raise DataError(
            f"Cannot use column '{name}'",
            found=f"it has the type {kind}",
            rule="a column holds numbers, texts, booleans or dates",
            remedy=f"Add it to data.drop_columns, or store it as another type. ({name})",
        )
    column = make_column(spec, name, "number")  # a text of `missing` says nothing of the kind, in quotes or not
    return role_of_words(column, to_texts(column, values).words)


def role_of_words(column: Column, words: tuple[str, ...]) -> Role:
    """The role of a text column by its different words. Raises DataError."""
    if not words:
        return "category"
    numbers = [word for word in words if _is_number(column, word)]
    if len(numbers) == len(words):
        return "number"
    if (
        sum(bool(THOUSANDS.match(word)) for word in words) + len(numbers) >= MOSTLY * len(words)
        and not column.thousands
    ):
        example = next(word for word in words if THOUSANDS.match(word) or not _is_number(column, word))
        if THOUSANDS.match(example):
            raise DataError(
                f"Cannot use column '{column.name}'",
                found=f"it holds numbers with separators of thousands, such as {example!r}",
                rule="a number has no separators",
                remedy='Set data.source.thousands: ",".',
            )
    if len(words) >= 20 and len(numbers) >= MOSTLY * len(words):
        others = [repr(word) for word in words if not _is_number(column, word)]
        raise DataError(
            f"Cannot use column '{column.name}'",
            found=f"{len(numbers)} of its {len(words)} different values are numbers, but not {', '.join(others[:5])}",
            rule="a column holds numbers or texts, not both",
            remedy=f"Add these words to data.source.missing, or declare data.columns.{column.name}: category.",
        )
    if all(ISO_DATE.match(word) for word in words):
        return "date"
    mean_words = sum(word.count(" ") + 1 for word in words) / len(words)
    return "text" if len(words) >= TEXT_VALUES_MIN and mean_words > TEXT_WORDS_MEAN else "category"


def _is_number(column: Column, word: str) -> bool:
    try:
        column.number_of(word)
    except ValueError:
        return False
    return True
