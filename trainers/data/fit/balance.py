"""Balance the training split: weights, drawing rows, or synthetic rows by imbalanced-learn.

Invariant: only ever handed the training split, after splitting and encoding; original rows come first and unchanged
where rows are added.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from typing import Any

import numpy as np

from cluster.bundle.transforms import Block, Output, Texts, Transforms, Values
from cluster.bundle.transforms.steps import MissingIndicator, TargetEncode, apply_steps
from cluster.errors import DataError
from cluster.spec.data import BalanceSpec
from cluster.spec.rules import SYNTHETIC
from trainers.data.read.raw import Table
from trainers.data.shards import Split


def balance_training(
    spec: BalanceSpec, transforms: Transforms, train: Split, table: Table, values: Mapping[str, Values]
) -> tuple[Split, dict[str, Any]]:
    """The training split, balanced, and the class counts before and after. Raises DataError."""
    if not is_synthetic(spec):
        return balance_rows(spec, train)
    _check_classes(train)
    _check_synthetic(spec, transforms, train, table)
    if spec.method == "smotenc":
        balanced = _smotenc(spec, transforms, train, values)
    else:
        matrix, targets = _sampler(spec, train.targets).fit_resample(train.inputs["features"], train.targets)
        balanced = Split({"features": matrix.astype(np.float32)}, targets)
    return balanced, _facts(spec, train, balanced)


def is_synthetic(spec: BalanceSpec | None) -> bool:
    """Whether the method makes rows that nobody has seen."""
    return spec is not None and spec.method in SYNTHETIC


def balance_rows(spec: BalanceSpec, train: Split) -> tuple[Split, dict[str, Any]]:
    """The training split of any layout, balanced by weights or by drawing its rows. Raises DataError."""
    _check_classes(train)
    if spec.method == "class_weights":
        balanced = Split(train.inputs, train.targets, class_weights(train.targets))
    else:
        rows = drawn_rows(spec, train.targets)
        balanced = Split({name: array[rows] for name, array in train.inputs.items()}, train.targets[rows])
    return balanced, _facts(spec, train, balanced)


def _check_classes(train: Split) -> None:
    if not np.issubdtype(train.targets.dtype, np.integer):
        raise DataError("Cannot balance", found="the task is regression", remedy="Set data.balance: null.")


def _facts(spec: BalanceSpec, train: Split, balanced: Split) -> dict[str, Any]:
    facts = {"method": spec.method, "before": _counts(train.targets), "after": _counts(balanced.targets)}
    return {"balance": facts}


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


def _check_synthetic(spec: BalanceSpec, transforms: Transforms, train: Split, table: Table) -> None:
    categories = [name for name, role in table.roles.items() if role == "category"]
    encoded = any(isinstance(block.steps[0], TargetEncode) for block in transforms.outputs[0].blocks)
    if spec.method != "smotenc" and categories and not encoded:
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
    if len(transforms.outputs) > 1 or transforms.outputs[0].name != "features":
        raise DataError(
            f"Cannot balance with {spec.method}",
            found="the model takes token ids",
            rule="synthetic rows are made of numbers",
            remedy="Set data.encode.text: word_counts, or data.balance.method: class_weights.",
        )
    smallest = Counter(train.targets.tolist()).most_common()[-1][1]
    if smallest <= spec.neighbors:
        raise DataError(
            f"Cannot balance with {spec.method}",
            found=f"the smallest class has {smallest} training rows and data.balance.neighbors is {spec.neighbors}",
            rule="each row of the class needs that many neighbors of its own class",
            remedy=f"Set data.balance.neighbors: {max(smallest - 1, 1)} or fewer, or method: over.",
        )


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


def _smotenc(spec: BalanceSpec, transforms: Transforms, train: Split, values: Mapping[str, Values]) -> Split:
    """SMOTENC on scaled numbers and category codes; new rows go through the same category steps as all others."""
    from imblearn.over_sampling import SMOTENC

    output = transforms.outputs[0]
    parts = [_mixed(block, values) for block in output.blocks]
    kinds = np.concatenate([np.full(part.shape[1], categorical) for part, categorical in parts])
    matrix = np.concatenate([part for part, _ in parts], axis=1)
    sampler = SMOTENC(
        categorical_features=np.flatnonzero(kinds).tolist(), k_neighbors=spec.neighbors, random_state=spec.seed
    )
    mixed, targets = sampler.fit_resample(matrix, train.targets)
    new = _features_of(output, np.asarray(mixed, dtype=np.float64)[len(train) :], parts, values)
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


def _counts(targets: np.ndarray) -> dict[str, int]:
    return {str(label): int(rows) for label, rows in sorted(Counter(targets.tolist()).items())}
