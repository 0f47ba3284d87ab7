"""Balance the training split: weights, drawing rows, or synthetic rows by imbalanced-learn.

Invariant: only ever handed the training split, after splitting and encoding; original rows come first and unchanged
where rows are added.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from cluster.bundle.transforms import Block, Output, Texts, Transforms, Values
from cluster.bundle.transforms.steps import MissingIndicator, apply_steps
from cluster.errors import DataError
from cluster.spec.data import BalanceSpec, DataSpec
from cluster.spec.rules import SYNTHETIC
from trainers.data.read.raw import Role
from trainers.data.shards import Split, save_split

BLOCK_ROWS = 1 << 14  # of a shard that are drawn at a time


def balance_training(
    spec: BalanceSpec, folder: Path, train: Split, classes: tuple[str, ...], make_rows: Callable[[Split], Split]
) -> tuple[int, dict[str, Any]]:
    """Balance the training split that lies in `folder`; how many rows it then has, and the class counts before and
    after. `make_rows`: `synthetic_rows` of it. Raises DataError."""
    targets = np.asarray(_classes_of(train))
    if spec.method == "class_weights":
        np.save(folder / "weights.npy", class_weights(targets))
        return len(train), _facts(spec, classes, targets, targets)
    if is_synthetic(spec):
        balanced = make_rows(train)
        save_split(folder, balanced)
        return len(balanced), _facts(spec, classes, targets, balanced.targets)
    rows = drawn_rows(spec, targets)
    for path in (*(folder / f"inputs.{name}.npy" for name in train.inputs), folder / "targets.npy"):
        array, drawn = np.load(path, mmap_mode="r", allow_pickle=False), path.with_suffix(".drawn")
        shard = np.lib.format.open_memmap(drawn, "w+", array.dtype, (len(rows), *array.shape[1:]))
        for start in range(0, len(rows), BLOCK_ROWS):
            shard[start : start + BLOCK_ROWS] = array[rows[start : start + BLOCK_ROWS]]
        shard.flush()
        drawn.replace(path)
    return len(rows), _facts(spec, classes, targets, targets[rows])


def synthetic_rows(
    spec: BalanceSpec, transforms: Transforms, train: Split, values: Mapping[str, Values], classes: tuple[str, ...]
) -> Split:
    """The training split and rows that nobody has seen. `values`: its rows before encoding. Raises DataError."""
    if spec.method == "smotenc":
        return _smotenc(spec, transforms, train, values, classes)
    sampler = _sampler(spec, train.targets)
    matrix, targets = _resample(spec, sampler, train.inputs["features"], train.targets, classes)
    return Split({"features": matrix.astype(np.float32)}, targets)


def check_balance(data: DataSpec, roles: Mapping[str, Role], counts: np.ndarray, classes: tuple[str, ...]) -> None:
    """Raise DataError for a method that these columns, or the (C,) training rows of each class, cannot follow.

    The check stage calls it with what it knows; `classes` is empty for a quantity.
    """
    spec = data.balance
    assert spec is not None
    if not classes:
        raise _no_classes()
    if is_synthetic(spec):
        _check_columns(data, spec, roles)
        _check_neighbors(spec, counts, classes)


def is_synthetic(spec: BalanceSpec | None) -> bool:
    """Whether the method makes rows that nobody has seen."""
    return spec is not None and spec.method in SYNTHETIC


def _classes_of(train: Split) -> np.ndarray:
    """(N,) class indices. Raises DataError for a quantity."""
    if not np.issubdtype(train.targets.dtype, np.integer):
        raise _no_classes()
    return train.targets


def _no_classes() -> DataError:
    return DataError("Cannot balance", found="the task is regression", remedy="Set data.balance: null.")


def _facts(spec: BalanceSpec, classes: tuple[str, ...], before: np.ndarray, after: np.ndarray) -> dict[str, Any]:
    """Rows of each class, by its label."""

    def counts(targets: np.ndarray) -> dict[str, int]:
        rows = np.bincount(targets, minlength=len(classes)).tolist()
        return {label: count for label, count in zip(classes, rows, strict=True) if count}

    return {"balance": {"method": spec.method, "before": counts(before), "after": counts(after)}}


def balanced_rows(spec: BalanceSpec, counts: np.ndarray) -> int | None:
    """Rows that the training split will have, from its class counts; None where only doing it can tell."""
    present = counts[counts > 0]
    largest, smallest, total = int(present.max()), int(present.min()), int(present.sum())
    if spec.method in ("class_weights", "sampler"):
        return total
    if spec.method in ("over", "smote", "smotenc"):
        return largest * len(present)
    if spec.method == "under":
        return smallest * len(present)
    return max(smallest, largest // 2) * len(present) if spec.method == "smote_under" else None


def class_weights(targets: np.ndarray) -> np.ndarray:
    """(N,) float32 weight of each row: N / (classes × rows of its class), so that the mean weight is 1."""
    counts = np.bincount(targets)
    present = int((counts > 0).sum())
    return (len(targets) / (present * counts[targets])).astype(np.float32)


def drawn_rows(spec: BalanceSpec, targets: np.ndarray) -> np.ndarray:
    """Row indices: `over` repeats rare rows, `under` leaves out frequent ones, `sampler` draws N evenly."""
    rng = np.random.default_rng(spec.seed)
    classes = [np.flatnonzero(targets == label) for label in np.unique(targets)]
    if spec.method == "sampler":
        share = -(-len(targets) // len(classes))
        return np.sort(np.concatenate([rng.choice(rows, share) for rows in classes]))[: len(targets)]
    sizes = [len(rows) for rows in classes]
    if spec.method == "under":
        return np.sort(np.concatenate([rng.choice(rows, min(sizes), replace=False) for rows in classes]))
    extra = [rng.choice(rows, max(sizes) - len(rows)) for rows in classes]
    return np.concatenate([np.arange(len(targets)), *extra])


def _check_columns(data: DataSpec, spec: BalanceSpec, roles: Mapping[str, Role]) -> None:
    categories = [name for name, role in roles.items() if role == "category"]
    if spec.method != "smotenc" and categories and data.encode.category != "target":
        raise DataError(
            f"Cannot balance with {spec.method}",
            found=f"{len(categories)} columns are categories ({', '.join(categories[:5])})",
            rule=f"{spec.method} draws lines between rows, and half a category means nothing",
            remedy="Set data.balance.method: smotenc, which keeps categories whole; or data.encode.category: target.",
        )
    if spec.method == "smotenc" and not categories:
        raise DataError(
            "Cannot balance with smotenc", found="no column is a category", remedy="Set data.balance.method: smote."
        )
    if data.encode.text == "token_ids" and "text" in roles.values():
        raise DataError(
            f"Cannot balance with {spec.method}",
            found="the model takes token ids",
            rule="synthetic rows are made of numbers",
            remedy="Set data.encode.text: word_counts, or data.balance.method: class_weights.",
        )


def _check_neighbors(spec: BalanceSpec, counts: np.ndarray, classes: tuple[str, ...]) -> None:
    """Only classes that get new rows need neighbors."""
    largest = int(counts.max())
    wanted = largest // 2 if spec.method == "smote_under" else largest
    few = [index for index in np.argsort(counts, kind="stable") if 0 < counts[index] < wanted]
    few = [index for index in few if counts[index] <= spec.neighbors]
    if not few:
        return
    smallest = int(counts[few[0]])
    shown = ", ".join(f"class {classes[index]!r} has {counts[index]}" for index in few[:5])
    more = f" (and {len(few) - 5} more)" if len(few) > 5 else ""
    lower = f"Set data.balance.neighbors: {smallest - 1} or fewer, or " if smallest > 1 else "Set "
    raise DataError(
        f"Cannot balance with {spec.method}",
        found=f"{shown} training row{'s' if smallest != 1 else ''}{more}, and data.balance.neighbors is "
        f"{spec.neighbors}",
        rule="each row of a class that gets new ones needs that many neighbors of its own class",
        remedy=f"{lower}data.balance.method: over.",
    )


def _resample(
    spec: BalanceSpec, sampler: Any, matrix: np.ndarray, targets: np.ndarray, classes: tuple[str, ...]
) -> tuple[np.ndarray, np.ndarray]:
    """What imbalanced-learn makes of the rows. Raises DataError for whatever it refuses."""
    try:
        made, labels = sampler.fit_resample(matrix, targets)
    except (ValueError, RuntimeError) as error:
        counts = np.bincount(targets, minlength=len(classes))
        rare = int(np.argmin(np.where(counts > 0, counts, len(targets))))
        said = " ".join(str(error).split())
        raise DataError(
            f"Cannot balance with {spec.method}",
            found=f"class {classes[rare]!r} has {counts[rare]} of {len(targets)} training rows, and imbalanced-learn "
            f"says: {said[:300]}",
            rule=f"data.balance.method {spec.method} makes new rows between neighbors, and not every class has them",
            remedy="Set data.balance.method: over, or another one that makes no rows (class_weights, sampler).",
        ) from error
    return np.asarray(made), np.asarray(labels)


def _sampler(spec: BalanceSpec, targets: np.ndarray) -> Any:
    from imblearn import over_sampling, pipeline, under_sampling

    common = {"random_state": spec.seed}
    if spec.method == "smote":
        return over_sampling.SMOTE(k_neighbors=spec.neighbors, **common)
    if spec.method == "borderline_smote":
        return over_sampling.BorderlineSMOTE(k_neighbors=spec.neighbors, **common)
    if spec.method == "adasyn":
        return over_sampling.ADASYN(n_neighbors=spec.neighbors, **common)
    counts = Counter(targets.tolist())
    half = max(counts.values()) // 2
    wanted = {label: max(rows, half) for label, rows in counts.items()}
    over = over_sampling.SMOTE(sampling_strategy=wanted, k_neighbors=spec.neighbors, **common)
    return pipeline.Pipeline([("over", over), ("under", under_sampling.RandomUnderSampler(**common))])


def _smotenc(
    spec: BalanceSpec, transforms: Transforms, train: Split, values: Mapping[str, Values], classes: tuple[str, ...]
) -> Split:
    """SMOTENC on scaled numbers and category codes; new rows go through the same category steps as all others.

    Of categories alone SMOTEN makes rows (Chawla et al. 2002, section 6.2): SMOTENC needs a number beside them.
    """
    from imblearn.over_sampling import SMOTEN, SMOTENC

    output = transforms.outputs[0]
    parts = [_mixed(block, values) for block in output.blocks]
    kinds = np.concatenate([np.full(part.shape[1], categorical) for part, categorical in parts])
    matrix = np.concatenate([part for part, _ in parts], axis=1)
    common = {"k_neighbors": spec.neighbors, "random_state": spec.seed}
    places = np.flatnonzero(kinds).tolist()
    sampler = SMOTEN(**common) if kinds.all() else SMOTENC(categorical_features=places, **common)
    mixed, targets = _resample(spec, sampler, matrix, train.targets, classes)
    new = _features_of(output, mixed[len(train) :].astype(np.float64), parts, values)
    features = np.concatenate([train.inputs["features"], new.astype(np.float32)])
    return Split({"features": features}, targets)


def _mixed(block: Block, values: Mapping[str, Values]) -> tuple[np.ndarray, bool]:
    """A block as SMOTENC sees it: (N, K) values, and whether they are codes of categories."""
    first = values[block.columns[0]]
    if isinstance(first, Texts):
        return first.codes.astype(np.float64)[:, None], True
    stacked = np.stack([np.asarray(values[name]) for name in block.columns], axis=1)
    return apply_steps(block.steps, stacked), isinstance(block.steps[0], MissingIndicator)


def _features_of(
    output: Output, mixed: np.ndarray, parts: list[tuple[np.ndarray, bool]], values: Mapping[str, Values]
) -> np.ndarray:
    found, start = [], 0
    for block, (part, _) in zip(output.blocks, parts, strict=True):
        rows = mixed[:, start : start + part.shape[1]]
        start += part.shape[1]
        first = values[block.columns[0]]
        if isinstance(first, Texts):
            rows = apply_steps(block.steps, Texts(rows[:, 0].astype(np.int32), first.words))
        found.append(rows)
    features = np.concatenate(found, axis=1)
    return features if output.selected is None else features[:, list(output.selected)]
