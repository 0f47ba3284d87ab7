"""Fit the transforms of images and arrays on their training rows, and make the tensors of all splits with them.

Invariant: mean and deviation have seen the training rows alone; every split is made by the exported transforms
themselves (cluster/bundle/transforms/arrays.py), which is the code that serving runs.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from cluster.bundle.transforms import ArrayTransforms, Pixels, Standardize
from trainers.data.raw import RawData
from trainers.data.shards import Split


def fit_arrays(
    raw: RawData, rows: Mapping[str, np.ndarray], targets: np.ndarray
) -> tuple[ArrayTransforms, dict[str, Split], dict[str, Any]]:
    """Transforms fitted on `rows["train"]`, all splits through them, and the facts."""
    assert raw.arrays is not None
    image = raw.layout == "image"
    step = fit_standardize(raw.arrays[rows["train"]], by_channel=image)
    transforms = ArrayTransforms(
        name="image" if image else "features", item_shape=raw.item_shape, steps=(step,), pixels=_pixels(raw)
    )
    splits = {name: Split(transforms.apply(raw.arrays[index]), targets[index]) for name, index in rows.items()}
    return transforms, splits, {"mean": list(step.mean), "deviation": list(step.deviation)}


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
