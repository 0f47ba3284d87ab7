"""Texts that are read as "no value" and may be values: a class `NA`, a region, a country code.

Invariant: says, and changes nothing. A text is kept by mapping it to itself (`data.clean.map_values`), which
`cluster.bundle.transforms.Column` takes for a value, in training and at serving alike.

Covered: any such text of the target; frequent ones with letters in a column of texts. Not covered: numbers, where such
a text can be no value; files whose quotes tell values, where it is one (dialect.py).
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from cluster.bundle.transforms import Column
from cluster.spec.remedy import map_line
from trainers.data.read.columns import whole_array

FREQUENT_SHARE = 0.01  # of a column's rows: rarer than this a text may well be a hole


def missing_words(column: Column, values: pa.ChunkedArray) -> dict[str, int]:
    """Rows of each text that the column's rules read as missing, without the empty one."""
    whole = whole_array(values)
    kind = whole.type.value_type if pa.types.is_dictionary(whole.type) else whole.type
    if not pa.types.is_string(kind) or not any(column.missing):
        return {}
    encoded = whole if pa.types.is_dictionary(whole.type) else whole.dictionary_encode()
    words = encoded.dictionary.to_pylist()
    places = [at for at, word in enumerate(words) if word and word.strip() and column.clean_word(word) is None]
    if not places:
        return {}
    codes = pc.fill_null(encoded.indices, len(words)).to_numpy(zero_copy_only=False)
    counts = np.bincount(codes, minlength=len(words) + 1)
    found: dict[str, int] = {}
    for at in places:
        found[words[at].strip()] = found.get(words[at].strip(), 0) + int(counts[at])
    return {word: rows for word, rows in found.items() if rows}


def may_be_values(words: Mapping[str, int], rows: int, *, is_target: bool) -> dict[str, int]:
    """Those of `missing_words` that a person should know of."""
    return {word: count for word, count in words.items()
            if is_target or (count >= FREQUENT_SHARE * rows and any(mark.isalpha() for mark in word))}  # fmt: skip


def said_missing(words: Mapping[str, int]) -> str:
    """The counts, as a part of a sentence."""
    return ", ".join(f"{count:,} rows of {word!r}" for word, count in words.items()) + " are read as missing"


def keep_line(name: str, words: Mapping[str, int]) -> str:
    """The line that keeps them as values."""
    return map_line(name, {word: word for word in words})


def missing_note(name: str, words: Mapping[str, int], rows: int, *, is_target: bool) -> str:
    """What is said of a column; empty where there is nothing to say."""
    known = may_be_values(words, rows, is_target=is_target)
    if not known:
        return ""
    return f"column '{name}': {said_missing(known)}; if they are values, {keep_line(name, known)} keeps them"
