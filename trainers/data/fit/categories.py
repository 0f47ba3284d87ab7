"""Fit category columns: one-hot, ordinal, target encoding (cross-fitted), hashing.

Invariant: sees training rows only. Target encoding of the training rows themselves is out of fold (each fold is
encoded by the others), so that a row's own target never reaches its features.
"""

from __future__ import annotations

import numpy as np

from cluster.bundle.transforms import Block, Texts
from cluster.bundle.transforms.steps import HashBuckets, OneHot, Ordinal, TargetEncode
from cluster.spec.data import DataSpec


def category_block(spec: DataSpec, name: str, column: Texts, targets: np.ndarray, num_classes: int) -> Block:
    """The block of one category column."""
    how = spec.encode.category
    if how == "one_hot":
        return _one_hot(spec, name, column)
    if how == "ordinal":
        return Block(columns=(name,), steps=(Ordinal(categories=tuple(sorted(column.words))),), features=(name,))
    if how == "hash":
        step = HashBuckets(buckets=spec.encode.hash_buckets)
        features = tuple(f"{name} bucket {index}" for index in range(step.buckets))
        return Block(columns=(name,), steps=(step,), features=features)
    encode = fit_target_encoding(column, targets, num_classes, spec.encode.target_smoothing)
    width = len(encode.default)
    features = (f"{name} target",) if width == 1 else tuple(f"{name} target {index}" for index in range(width))
    return Block(columns=(name,), steps=(encode,), features=features)


def fit_target_encoding(column: Texts, targets: np.ndarray, num_classes: int, smoothing: float) -> TargetEncode:
    """Mean of the target a category, drawn to the overall mean by `smoothing` rows of it."""
    goals = target_columns(targets, num_classes)
    prior = goals.mean(axis=0)
    known = column.codes >= 0
    counts = np.bincount(column.codes[known], minlength=len(column.words)).astype(np.float64)
    sums = np.stack(
        [np.bincount(column.codes[known], weights=goal[known], minlength=len(column.words)) for goal in goals.T], axis=1
    )
    means = (sums + smoothing * prior) / (counts[:, None] + smoothing)
    return TargetEncode(
        categories=column.words,
        values=tuple(tuple(float(value) for value in row) for row in means),
        default=tuple(float(value) for value in prior),
    )


def target_columns(targets: np.ndarray, num_classes: int) -> np.ndarray:
    """(N, 1) for two classes or a quantity, (N, C) one-hot for more."""
    if num_classes <= 2:
        return targets.astype(np.float64)[:, None]
    return np.eye(num_classes)[targets]


def _one_hot(spec: DataSpec, name: str, column: Texts) -> Block:
    """The most frequent categories; the rest, and unknown ones, share a bucket where training has such rows."""
    counts = np.bincount(column.codes[column.codes >= 0], minlength=len(column.words))
    order = sorted(range(len(column.words)), key=lambda code: (-counts[code], column.words[code]))
    kept = tuple(sorted(column.words[code] for code in order[: spec.encode.max_categories]))
    rest = len(column.words) > len(kept)
    missing = bool((column.codes < 0).any())
    step = OneHot(categories=kept, bucket_unknown=rest, bucket_missing=missing)
    features = [f"{name}={word}" for word in kept] + [f"{name} other"] * rest + [f"{name} is missing"] * missing
    return Block(columns=(name,), steps=(step,), features=tuple(features))
