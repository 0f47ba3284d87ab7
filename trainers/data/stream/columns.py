"""Which columns of a table past memory become features, and how they are read, by what pass one has seen of them.

Invariant: the same columns by the same rules as read/tables.py takes from the whole table.
"""

from __future__ import annotations

import numpy as np

from cluster.errors import DataError
from cluster.spec.data import DataSpec
from cluster.spec.remedy import kind_line
from trainers.data.read.arrow_types import unusable
from trainers.data.read.infer import IDENTIFIER_WHY, Inferred
from trainers.data.read.missing_words import missing_note
from trainers.data.stream.scan import WORDS_MAX, Columns, Seen, infer_seen


def feature_columns(spec: DataSpec, columns: Columns) -> tuple[dict[str, Inferred], list[str]]:
    """How the columns that become features are read; what was inferred, and why others do not."""
    split = spec.split
    apart = {spec.target, *spec.drop_columns, split.group, split.time, split.column}
    features: dict[str, Inferred] = {}
    notes = [f"{columns.dropped} rows are left out: a value is missing"] if columns.dropped else []
    target = missing_note(spec.target, columns.seen[spec.target].gone, columns.rows, is_target=True)
    notes += [target] if target else []
    for name, seen in columns.seen.items():
        if name in apart or spec.columns.get(name) == "drop":
            continue
        if why := unusable(seen.kind):
            notes.append(f"column '{name}' is left out: {why}")
            continue
        inferred = infer_seen(spec, name, seen, columns.rows)
        why = _why_useless(spec, seen, inferred, columns.rows)
        if why and name not in spec.columns:
            notes.append(f"column '{name}' is left out: {why}")
            continue
        if inferred.role == "category" and seen.overflow and spec.encode.category != "hash":
            raise DataError(
                f"Cannot use column '{name}'", found=f"it has more than {WORDS_MAX:,} different words",
                rule="past memory the words of a category are counted one by one",
                remedy=f"Set data.encode.category: hash, or {kind_line(name, 'text')}, or drop the column.",
            )  # fmt: skip
        features[name] = inferred
        notes += [inferred.note] if inferred.note else []
        if inferred.role in ("category", "text"):
            notes += [note] if (note := missing_note(name, seen.gone, columns.rows, is_target=False)) else []
    return features, notes


def _why_useless(spec: DataSpec, seen: Seen, inferred: Inferred, rows: int) -> str:
    """As in read/tables.py, from counts."""
    share = seen.missing / rows
    if share == 1.0:
        return "every value is missing"
    if share > spec.max_missing:
        return f"{share:.0%} of its values are missing, data.max_missing is {spec.max_missing:.0%}"
    if share == 0.0 and _one_value(seen, inferred):
        return "all values are equal"
    return IDENTIFIER_WHY if inferred.identifier else ""


def _one_value(seen: Seen, inferred: Inferred) -> bool:
    if inferred.role in ("category", "text"):
        return len(seen.words) == 1
    if seen.writing.numbers:
        return seen.writing.low == seen.writing.high
    if seen.overflow or not seen.words:
        return False
    parsed = inferred.column.from_rows(list(seen.words))
    return len(np.unique(np.asarray(parsed))) == 1
