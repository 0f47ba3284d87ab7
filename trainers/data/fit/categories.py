"""Fit category columns: one-hot, ordinal, target encoding (cross-fitted), hashing.

Invariant: sees training rows only. Target encoding of the training rows themselves is out of fold (each fold is
encoded by the others), so that a row's own target never reaches its features.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from cluster.bundle.transforms import Block
from cluster.bundle.transforms.steps import HashBuckets, OneHot, Ordinal, TargetEncode
from cluster.spec.data import DataSpec
from trainers.data.fit.training_statistics import FOLDS, Statistics, Sums, count_words


def category_block(spec: DataSpec, name: str, training: Statistics) -> Block:
    """The block of one category column."""
    how = spec.encode.category
    if how == "hash":
        step = HashBuckets(buckets=spec.encode.hash_buckets)
        features = tuple(f"{name} bucket {index}" for index in range(step.buckets))
        return Block(columns=(name,), steps=(step,), features=features)
    if how == "target":
        encode = target_encoding(training.sums[name], spec.encode.target_smoothing)
        width = len(encode.default)
        features = (f"{name} target",) if width == 1 else tuple(f"{name} target {index}" for index in range(width))
        return Block(columns=(name,), steps=(encode,), features=features)
    counts = count_words(training.sample.values[name]) if training.whole else training.words[name]
    if how == "one_hot":
        return _one_hot(spec, name, counts)
    words = tuple(sorted(word for word in counts if word is not None))
    return Block(columns=(name,), steps=(Ordinal(categories=words),), features=(name,))


def target_encoding(sums: Sums, smoothing: float, *, without: int | None = None) -> TargetEncode:
    """Mean of the target a category, drawn to the overall mean by `smoothing` rows of it. `without`: a fold that is
    left out, where it is not all there is."""
    folds = [fold for fold in range(FOLDS) if fold != without]
    known = {word: each[folds].sum(axis=0) for word, each in sums.items()}
    whole = np.sum(list(known.values()), axis=0)
    if not whole[0]:
        return target_encoding(sums, smoothing)
    prior = whole[1:] / whole[0]
    words = sorted(word for word, (rows, *_) in known.items() if word is not None and rows)
    return TargetEncode(
        categories=tuple(words),
        values=tuple(
            tuple(((known[word][1:] + smoothing * prior) / (known[word][0] + smoothing)).tolist()) for word in words
        ),
        default=tuple(prior.tolist()),
    )


def _one_hot(spec: DataSpec, name: str, counts: Mapping[str | None, int]) -> Block:
    """The most frequent categories; the rest, and unknown ones, share a bucket where training has such rows."""
    words = [word for word in counts if word is not None]
    kept = tuple(sorted(sorted(words, key=lambda word: (-counts[word], word))[: spec.encode.max_categories]))
    rest, missing = len(words) > len(kept), None in counts
    step = OneHot(categories=kept, bucket_unknown=rest, bucket_missing=missing)
    features = [f"{name}={word}" for word in kept] + [f"{name} other"] * rest + [f"{name} is missing"] * missing
    return Block(columns=(name,), steps=(step,), features=tuple(features))
