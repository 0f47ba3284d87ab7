"""Whether each split has the classes that it needs: none that training never sees, and more than one.

Invariant: an error names the class, its rows in each split, why the rows lie as they do under this very spec, and a
remedy that the spec does not follow already.

Covered: every rule of splits, in memory and past it.
Not covered: how many rows a figure needs (compress/accuracy_gate.py).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import numpy as np

from cluster.errors import DataError
from cluster.spec.data import SPLITS, DataSpec
from cluster.spec.remedy import map_line
from trainers.data.quality.rules import variants

SHOWN_MAX = 5


def check_split_classes(
    spec: DataSpec,
    counts: Mapping[str, np.ndarray],
    classes: tuple[str, ...],
    *,
    different: Callable[[int], int] | None = None,
    mapped: bool = True,
) -> None:
    """Raise DataError for classes that training never sees, and for a split of a single class.

    Args:
        counts: (C,) rows of each class, a split that has rows.
        different: class index -> how many of its rows are different (or groups); None where that is not known.
        mapped: whether `data.clean.map_values` is there for this source.
    """
    _check_seen(spec, counts, classes, different, mapped=mapped)
    for name, rows in counts.items():
        if np.count_nonzero(rows) == 1:
            only = int(rows.argmax())
            missing = int(np.argmax(np.where(rows > 0, 0, sum(counts.values()))))
            cause, remedy = _cause(spec, name, missing, counts, classes, different)
            raise DataError(
                "Cannot use the split",
                found=f"all {int(rows.sum()):,} rows of {name} are of class {classes[only]!r}: {cause}",
                rule="each split needs at least two classes",
                remedy=remedy,
            )


def look_alikes(unseen: list[str], seen: list[str]) -> dict[str, str]:
    """Labels of `unseen` that are one of `seen` but for case, white space and outer marks (`>50K.`)."""
    return {
        word: next(other for other in group if other in seen)
        for group in variants((*seen, *unseen))
        for word in group
        if word in unseen and any(other in seen for other in group)
    }


def _check_seen(
    spec: DataSpec, counts: Mapping[str, np.ndarray], classes: tuple[str, ...],
    different: Callable[[int], int] | None, *, mapped: bool,
) -> None:  # fmt: skip
    total = sum(counts.values())
    unseen = np.flatnonzero((counts["train"] == 0) & (total > 0))
    if not len(unseen):
        return
    texts = []
    for index in unseen[:SHOWN_MAX]:
        where = ", ".join(f"{int(rows[index]):,} in {name}" for name, rows in counts.items() if rows[index])
        texts.append(f"class {classes[index]!r} has {where}")
    more = f" (and {len(unseen) - SHOWN_MAX} more)" if len(unseen) > SHOWN_MAX else ""
    names = [classes[index] for index in unseen]
    alike = look_alikes(names, [label for label in classes if label not in names])
    first = int(unseen[0])
    split = next(name for name, rows in counts.items() if rows[first])
    cause, remedy = _cause(spec, split, first, counts, classes, different)
    known = spec.clean.map_values.get(spec.target, {})
    if alike and mapped:
        pairs = ", ".join(f"{word!r} looks like {other!r}" for word, other in list(alike.items())[:SHOWN_MAX])
        cause, remedy = pairs, f"Set {map_line(spec.target, {**known, **alike})}."
    elif mapped:
        gone = {**known, **dict.fromkeys(names[:SHOWN_MAX], "")}
        remedy += f" To leave these rows out, set {map_line(spec.target, gone)}."
    raise DataError(
        f"Cannot train the classes of '{spec.target}'",
        found=f"{'; '.join(texts)}{more}, and train has no row of {'it' if len(unseen) == 1 else 'them'}: {cause}",
        rule="a class that training never sees is never predicted",
        remedy=remedy,
        details={"unseen": names, "look_alikes": alike},
    )


def _cause(
    spec: DataSpec, name: str, index: int, counts: Mapping[str, np.ndarray], classes: tuple[str, ...],
    different: Callable[[int], int] | None,
) -> tuple[str, str]:  # fmt: skip
    """Why split `name` and class `index` do not go together under this spec, and what can be done."""
    split, label, rows = spec.split, repr(classes[index]), sum(int(each[index]) for each in counts.values())
    many = f"class {label} has {rows:,} row{'s' if rows != 1 else ''}"
    test_path = getattr(spec.source, "test_path", None)
    if test_path and (name == "test" or ("test" in counts and int(counts["test"][index]) == rows)):
        return f"the rows of {test_path} are the test split", "Give both files rows of each class."
    if split.column is not None:
        return f"column '{split.column}' says so", "Give each of its splits rows of each class."
    if split.time is not None:
        return (f"rows go into the splits by '{split.time}', the oldest into train, and {many}",
                f"Raise data.split.{name}, or leave data.split.time out.")  # fmt: skip
    units = different(index) if different is not None else None
    if split.group is not None:
        groups = f" in {units:,} groups" if units is not None else ""
        return (f"{many}{groups}, and a group stays in one split",
                f"Give more groups of it, or raise data.split.{name}.")  # fmt: skip
    if split.by_hash:
        return (f"{many}, and each row's own hash says its split",
                f"Give more rows of it, or raise data.split.{name}.")  # fmt: skip
    if units is not None and units < rows:
        return (f"{many}, of which {units:,} are different, and equal rows stay in one split",
                "Give more different rows of it, or divide into fewer splits (a share of 0 makes none).")  # fmt: skip
    splits = 1 + sum(1 for other in SPLITS[1:] if getattr(split, other))
    if rows >= splits and not split.stratify:
        return f"{many}, and the rows are not stratified", "Set data.split.stratify: true."
    return (f"{many} for {splits} splits, and {name} gets fewer than one of them",
            f"Give more rows of it, or raise data.split.{name}.")  # fmt: skip
