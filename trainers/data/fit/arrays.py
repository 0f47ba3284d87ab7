"""Fit the transforms of images and arrays on their training rows.

Invariant: mean and deviation have seen the training rows alone; every split is made by the exported transforms
themselves (cluster/bundle/transforms/arrays.py), which is the code that serving runs. A rule of tables in the spec of
a source of arrays is an error: it would do nothing.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from cluster.bundle.transforms import ArrayTransforms, Pixels, Standardize
from cluster.errors import DataError
from cluster.spec.data import DataSpec
from cluster.spec.rules import rules_of_tables
from trainers.data.read.raw import ITEMS, RawData


def check_rules(spec: DataSpec) -> None:
    """Raise DataError for rules that only a table has."""
    if found := rules_of_tables(spec):
        raise DataError(
            f"Cannot prepare the arrays of a {spec.source.kind} source",
            found="the spec has " + ", ".join(found),
            rule="these are rules for tables, and arrays have no columns",
            remedy="Leave them out; data.balance takes class_weights, over, under and sampler here.",
        )


def fit_arrays(raw: RawData, train: np.ndarray) -> tuple[ArrayTransforms, dict[str, Any]]:
    """Transforms fitted on the rows `train`, and facts."""
    image = raw.layout == "image"
    step = fit_standardize(np.asarray(raw.rows.values[ITEMS])[train], by_channel=image)
    transforms = ArrayTransforms(
        name="image" if image else "features", item_shape=raw.item_shape, steps=(step,), pixels=_pixels(raw)
    )
    return transforms, {"mean": list(step.mean), "deviation": list(step.deviation)}


def fit_standardize(train: np.ndarray, *, by_channel: bool) -> Standardize:
    """Mean and deviation of (N, C, H, W) training images a channel, or of (N, …) arrays a feature."""
    axes = (0, 2, 3) if by_channel else (0,)
    values = train.astype(np.float64)
    mean, deviation = values.mean(axis=axes, keepdims=True)[0], values.std(axis=axes, keepdims=True)[0]
    deviation[deviation == 0] = 1.0
    return Standardize(shape=mean.shape, mean=tuple(mean.ravel().tolist()), deviation=tuple(deviation.ravel().tolist()))


def _pixels(raw: RawData) -> Pixels | None:
    if raw.white is None:
        return None
    channels, height, width = raw.item_shape
    return Pixels(channels=1 if channels == 1 else 3, height=height, width=width, white=raw.white)
