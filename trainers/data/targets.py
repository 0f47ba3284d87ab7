"""The target: its task, its classes, and whether anything can be learned from it.

Invariant: a target that passes has at least two classes (or two values), as many rows as classes need, and no
missing value; class labels are text, in numeric order where all are numbers, else in alphabetical order.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal

import numpy as np

from cluster.bundle.transforms import Column, Texts
from cluster.errors import DataError
from cluster.spec.data import DataSpec
from trainers.data.read.columns import make_column
from trainers.data.read.infer import CLASSES_AS_NUMBERS_MAX, target_column
from trainers.data.read.missing_words import keep_line, said_missing

CLASSES_MAX = 10_000  # beyond it a softmax layer is the wrong model, and the column is an identifier

Task = Literal["classification", "regression"]


@dataclass(frozen=True)
class Target:
    """What is learned, and how a table's words are read as it."""

    task: Task
    reason: str
    """Why it is that task."""
    classes: tuple[str, ...]
    """Empty for a quantity."""
    codes: dict[str, int] = field(default_factory=dict)
    """Word -> class index."""
    column: Column | None = None
    """How a quantity is read."""

    def read(self, target: Texts | np.ndarray) -> np.ndarray:
        """(N,) int64 class indices, or float32 values, of words or of the labels of arrays. Raises DataError."""
        if not isinstance(target, Texts):
            return encode(class_labels(target), self.classes) if self.classes else target.astype(np.float32)
        if self.classes:
            return np.array([self.codes[word] for word in target.words], dtype=np.int64)[target.codes]
        return np.array([self._quantity(word) for word in target.words], dtype=np.float32)[target.codes]

    def _quantity(self, word: str) -> float:
        assert self.column is not None
        try:
            return self.column.number_of(word)
        except ValueError:
            raise DataError(
                f"Cannot use '{self.column.name}' as the target", found=f"it holds {word!r} beside numbers",
                rule="a quantity is a number in every row",
                remedy="Mend these rows, or map the word to a missing value with data.clean.map_values.",
            ) from None  # fmt: skip


def settle_words(spec: DataSpec, words: Sequence[str], rows: int, missing: Mapping[str, int]) -> Target:
    """The target of a table of so many rows, by its different words. `missing`: texts that are read as missing. Raises
    DataError."""
    column = target_column(spec, words)
    numbers = None if column is None else column.numbers_of(words)
    values = np.array(words, dtype=object) if numbers is None else numbers
    target = settle_target(spec, values, rows, missing)
    labels = class_labels(values).tolist() if target.classes else []
    codes = {word: target.classes.index(label) for word, label in zip(words, labels, strict=False)}
    column = column or make_column(spec, spec.target)
    return Target(target.task, target.reason, target.classes, codes, column)


def settle_target(spec: DataSpec, target: Texts | np.ndarray, rows: int, missing: Mapping[str, int]) -> Target:
    """The target of words, or of the values of arrays: of all rows or the different ones. Raises DataError."""
    if isinstance(target, Texts):
        return settle_words(spec, target.words, rows, missing)
    task = infer_task(target, spec.task)
    reason = task_reason(target, task)
    if task == "regression":
        check_regression(target, spec.target, rows)
        return Target(task, reason, ())
    return Target(task, reason, find_classes(class_labels(target), spec.target, rows, missing))


def infer_task(targets: np.ndarray, asked: str) -> Task:
    """The task as asked, else by the values: text and few whole numbers are classes. Raises DataError."""
    if asked in ("classification", "regression"):
        if asked == "regression" and targets.dtype == object:
            raise DataError(
                "Cannot train a regression",
                found=f"the target holds text such as {str(targets[0])!r}",
                rule="a regression needs numbers",
                remedy="Set data.task: classification, or choose another data.target.",
            )
        return asked  # type: ignore[return-value]
    if targets.dtype == object:
        return "classification"
    values = np.unique(targets)
    whole = bool(np.all(values == np.floor(values)))
    return "classification" if whole and len(values) <= CLASSES_AS_NUMBERS_MAX else "regression"


def task_reason(targets: np.ndarray, task: Task) -> str:
    """Why `data.task: auto` is what it is, by the target's values or its different ones: the same of both."""
    if targets.dtype == object:
        return "the target holds text"
    values = np.unique(targets)
    if task == "classification":
        return f"the target has {len(values)} different whole numbers, and up to {CLASSES_AS_NUMBERS_MAX} are classes"
    if np.all(values == np.floor(values)):
        return f"the target has more than {CLASSES_AS_NUMBERS_MAX} different whole numbers"
    return "the target holds numbers that are not whole"


def class_labels(targets: np.ndarray) -> np.ndarray:
    """(N,) object: each target as the text of its class."""
    if targets.dtype == object:
        return targets
    return np.array([_number_text(value) for value in targets.tolist()], dtype=object)


def find_classes(labels: np.ndarray, name: str, rows: int, missing: Mapping[str, int]) -> tuple[str, ...]:
    """All labels in order. `labels`: of all `rows`, or the different ones; `missing`: texts that are read as missing.
    Raises DataError for one class, and for labels that are no classes."""
    classes = sorted(set(labels.tolist()))
    attempted = f"Cannot use '{name}' as the target"
    if len(classes) == 1:
        raise one_class(name, classes[0], rows, missing)
    if len(classes) > CLASSES_MAX or (len(classes) > 20 and len(classes) > rows / 2):
        raise DataError(
            attempted,
            found=f"it has {len(classes)} different values in {rows} rows, such as {classes[0]!r}",
            rule=f"classes repeat (at most {CLASSES_MAX:,}, and fewer than half of the rows)",
            remedy="It looks like a quantity: set data.task: regression, or choose another data.target."
            if are_numbers(classes)
            else "It looks like an identifier: choose another data.target.",
        )
    return tuple(ordered_classes(classes))


def one_class(name: str, label: str, rows: int, missing: Mapping[str, int]) -> DataError:
    """All rows have one label; `missing`: texts of the target that are read as missing."""
    kept = f"{keep_line(name, missing)} keeps them as classes. " if missing else ""
    return DataError(
        f"Cannot use '{name}' as the target",
        found=f"all {rows:,} rows have the value {label!r}" + (f", and {said_missing(missing)}" if missing else ""),
        rule="a target needs at least two classes",
        remedy=f"{kept}Choose another data.target, or give rows of other classes.",
    )


def check_regression(targets: np.ndarray, name: str, rows: int) -> None:
    """Raise DataError for a constant or non-finite quantity."""
    attempted = f"Cannot use '{name}' as the target"
    bad = int((~(np.abs(targets) <= np.finfo(np.float32).max)).sum())
    if bad:
        raise DataError(
            attempted, found=f"{bad} of {len(targets)} values are NaN, infinite or beyond 3.4e38",
            rule="a quantity is a 32-bit float", remedy="Remove these rows, or bring the target to another unit.",
        )  # fmt: skip
    if np.all(targets == targets[0]):
        raise DataError(
            attempted, found=f"all {rows} rows have the value {targets[0]:g}", remedy="Choose another target."
        )


def encode(labels: np.ndarray, classes: tuple[str, ...]) -> np.ndarray:
    """(N,) int64 index of each label in `classes`."""
    index = {label: number for number, label in enumerate(classes)}
    return np.fromiter((index[label] for label in labels.tolist()), dtype=np.int64, count=len(labels))


def check_class_rows(codes: np.ndarray, classes: tuple[str, ...], num_splits: int) -> None:
    """Raise DataError when a class has fewer rows than there are splits to stratify into."""
    counts = np.bincount(codes, minlength=len(classes))
    few = np.flatnonzero((counts > 0) & (counts < num_splits))
    rare = [f"{classes[i]!r} has {counts[i]}" for i in few]
    if rare:
        raise DataError(
            "Cannot split the data with data.split.stratify",
            found=f"class {', '.join(rare[:5])} row{'s' if counts[few].min() != 1 else ''}"
            + (f" (and {len(rare) - 5} more)" if len(rare) > 5 else ""),
            rule=f"each class needs a row for each of the {num_splits} splits",
            remedy=("If the target is a quantity, set data.task: regression. " if are_numbers(classes) else "")
            + "Give more rows, join rare classes with data.clean.map_values, or set data.split.stratify: false.",
        )


def are_numbers(classes: Sequence[str]) -> bool:
    """Whether each label is a number, so that the target may be a quantity."""
    try:
        return all(np.isfinite(float(label)) for label in classes)
    except ValueError:
        return False


def ordered_classes(classes: list[str]) -> list[str]:
    """Class labels in numeric order where all are numbers, else in alphabetical order."""
    try:
        return sorted(classes, key=float)
    except ValueError:
        return classes


def _number_text(value: float) -> str:
    return str(int(value)) if float(value).is_integer() else repr(float(value))
