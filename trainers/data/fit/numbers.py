"""Fit number columns: scikit-learn does the statistics of rows in memory, the fitted values are exported as steps.

Invariant: sees training rows only; a column without any value in training becomes the constant 0.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from sklearn.impute import SimpleImputer
from sklearn.preprocessing import MinMaxScaler, QuantileTransformer, RobustScaler, StandardScaler
from sklearn.tree import DecisionTreeClassifier, DecisionTreeRegressor

from cluster.bundle.transforms import Block
from cluster.bundle.transforms.steps import (
    Clip,
    Impute,
    ImputeNeighbors,
    MissingIndicator,
    PiecewiseLinear,
    Quantile,
    Scale,
    apply_steps,
)
from cluster.spec.data import DataSpec
from trainers.data.fit.training_statistics import Moments, Statistics

NEIGHBOR_ROWS_MAX = 1_000  # the reference travels in the bundle: 1,000 rows × 10 columns are about 200 kB of JSON
BIN_ROWS_MIN = 32  # fewer training rows than this in a bin are noise
QUANTILES_MAX = 1_000  # scikit-learn's default
QUANTILE_ROWS_MAX = 1_000_000


def number_blocks(spec: DataSpec, names: Sequence[str], training: Statistics) -> list[Block]:
    """One block for the values, one for their bins and one for the missing indicators, where asked."""
    matrix = np.stack([np.asarray(training.sample.values[name]) for name in names], axis=1)
    moments = None if training.whole else [training.numbers[name] for name in names]
    steps: list[Any] = []
    low_high = _fences(matrix, spec.clean.clip_iqr)
    if low_high is not None:
        steps.append(Clip(low=_tuple(low_high[0]), high=_tuple(low_high[1])))
    exact = None if steps else moments  # of all training rows, as they are
    steps.append(_impute(spec, apply_steps(tuple(steps), matrix), exact))
    filled = apply_steps(tuple(steps), matrix)
    scale = (_exact_scale(spec, exact, steps[-1]) if exact else None) or _scale(spec, filled)
    scaled = (*steps, scale) if scale is not None else tuple(steps)
    blocks = [Block(columns=tuple(names), steps=scaled, features=tuple(names))]
    if spec.encode.number == "piecewise_linear":
        targets = training.sample.targets
        bins = PiecewiseLinear(edges=tuple(_edges(column, targets, spec.encode.bins) for column in filled.T))
        pairs = zip(names, bins.edges, strict=True)
        features = tuple(f"{name} bin {index}" for name, edges in pairs for index in range(len(edges) - 1))
        blocks.append(Block(columns=tuple(names), steps=(*steps, bins), features=features))
    missing = [each.missing for each in moments] if moments else np.isnan(matrix).any(axis=0)
    holes = [name for name, any_missing in zip(names, missing, strict=True) if any_missing]
    if spec.clean.missing_indicators and holes:
        features = tuple(f"{name} is missing" for name in holes)
        blocks.append(Block(columns=tuple(holes), steps=(MissingIndicator(),), features=features))
    return blocks


def _fences(matrix: np.ndarray, factor: float | None) -> tuple[np.ndarray, np.ndarray] | None:
    """Tukey's fences of each column; none for a column without spread."""
    if factor is None:
        return None
    empty = np.isnan(matrix).all(axis=0)
    low, high = np.nanpercentile(np.where(empty, 0.0, matrix), [25, 75], axis=0)
    spread = high - low
    big = float(np.finfo(np.float64).max)
    return np.where(spread > 0, low - factor * spread, -big), np.where(spread > 0, high + factor * spread, big)


def _impute(spec: DataSpec, matrix: np.ndarray, exact: Sequence[Moments] | None) -> Impute | ImputeNeighbors:
    if exact and spec.clean.impute == "mean":
        return Impute(values=tuple(each.mean for each in exact))
    strategy = {"mode": "most_frequent", "neighbors": "mean"}.get(spec.clean.impute, spec.clean.impute)
    imputer = SimpleImputer(strategy=strategy, fill_value=spec.clean.constant, keep_empty_features=True).fit(matrix)
    constants = _tuple(np.nan_to_num(imputer.statistics_))
    if spec.clean.impute != "neighbors":
        return Impute(values=constants)
    chosen = np.random.default_rng(spec.split.seed).permutation(len(matrix))[:NEIGHBOR_ROWS_MAX]
    reference = tuple(
        tuple(None if np.isnan(value) else float(value) for value in row) for row in matrix[np.sort(chosen)]
    )
    return ImputeNeighbors(neighbors=spec.clean.neighbors, reference=reference, fallback=constants)


def _scale(spec: DataSpec, matrix: np.ndarray) -> Scale | Quantile | None:
    how = spec.encode.number
    if how in ("standard", "piecewise_linear"):
        standard = StandardScaler().fit(matrix)
        return Scale(offset=_tuple(standard.mean_), divisor=_tuple(standard.scale_))
    if how == "robust":
        robust = RobustScaler().fit(matrix)
        return Scale(offset=_tuple(robust.center_), divisor=_tuple(robust.scale_))
    if how == "min_max":
        bounds = MinMaxScaler().fit(matrix)
        return Scale(offset=_tuple(bounds.data_min_), divisor=_tuple(1.0 / bounds.scale_))
    if how == "quantile":
        count = min(QUANTILES_MAX, len(matrix))
        ranks = QuantileTransformer(n_quantiles=count, subsample=QUANTILE_ROWS_MAX, random_state=0).fit(matrix)
        return Quantile(
            references=_tuple(ranks.references_), quantiles=tuple(_tuple(column) for column in ranks.quantiles_.T)
        )
    return None


def _exact_scale(spec: DataSpec, moments: Sequence[Moments], impute: Impute | ImputeNeighbors) -> Scale | None:
    """The scale that follows from moments, as `_scale` has it of values: means and deviations, or ends."""
    if not isinstance(impute, Impute) or spec.encode.number not in ("standard", "piecewise_linear", "min_max"):
        return None
    whole = [each.filled(value) for each, value in zip(moments, impute.values, strict=True)]
    if spec.encode.number == "min_max":
        spans = (each.high - each.low for each in whole)
        divisor = tuple(1.0 / (1.0 / span) if span > 0 else 1.0 for span in spans)
        return Scale(offset=tuple(each.low for each in whole), divisor=divisor)
    return Scale(offset=tuple(each.mean for each in whole), divisor=tuple(_deviation(each) for each in whole))


def _deviation(moments: Moments) -> float:
    """As scikit-learn, 1 for a column without spread: below `_is_constant_feature`'s bound the variance is rounding."""
    variance, eps = moments.squares / moments.count, np.finfo(np.float64).eps
    constant = variance <= moments.count * eps * variance + (moments.count * moments.mean * eps) ** 2
    return 1.0 if constant else float(np.sqrt(variance))


def _edges(column: np.ndarray, targets: np.ndarray, bins: int) -> tuple[float, ...]:
    """Bin edges where the target changes most: the thresholds of a small decision tree on this column alone.

    Source: the target-aware bins of Gorishniy et al. (2022). A column without a threshold gets one bin.
    """
    tree_class = DecisionTreeClassifier if np.issubdtype(targets.dtype, np.integer) else DecisionTreeRegressor
    leaf = min(BIN_ROWS_MIN, max(1, len(column) // (2 * bins)))
    tree = tree_class(max_leaf_nodes=bins, min_samples_leaf=leaf, random_state=0).fit(column[:, None], targets).tree_
    inner = tree.threshold[tree.children_left >= 0]
    edges = np.unique(np.concatenate([[column.min()], inner, [column.max()]]))
    return _tuple(edges) if len(edges) > 1 else (float(edges[0]), float(edges[0]) + 1.0)


def _tuple(values: np.ndarray) -> tuple[float, ...]:
    return tuple(float(value) for value in values)
