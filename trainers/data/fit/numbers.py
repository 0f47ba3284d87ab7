"""Fit number columns: scikit-learn does the statistics, the fitted values are exported as steps.

Invariant: sees training rows only; a column without any value in training becomes the constant 0.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from sklearn.impute import SimpleImputer
from sklearn.preprocessing import MinMaxScaler, QuantileTransformer, RobustScaler, StandardScaler
from sklearn.tree import DecisionTreeClassifier, DecisionTreeRegressor

from cluster.bundle.transforms import Block, Values
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

NEIGHBOR_ROWS_MAX = 1_000  # the reference travels in the bundle: 1,000 rows × 10 columns are about 200 kB of JSON
BIN_ROWS_MIN = 32  # fewer training rows than this in a bin are noise
QUANTILES_MAX = 1_000  # scikit-learn's default
QUANTILE_ROWS_MAX = 1_000_000


def number_blocks(
    spec: DataSpec, names: Sequence[str], values: Mapping[str, Values], targets: np.ndarray
) -> list[Block]:
    """One block for the values, one for their bins and one for the missing indicators, where asked."""
    matrix = np.stack([np.asarray(values[name]) for name in names], axis=1)
    steps: list[Any] = []
    low_high = _fences(matrix, spec.clean.clip_iqr)
    if low_high is not None:
        steps.append(Clip(low=_tuple(low_high[0]), high=_tuple(low_high[1])))
    steps.append(_impute(spec, apply_steps(tuple(steps), matrix)))
    filled = apply_steps(tuple(steps), matrix)
    scale = _scale(spec, filled)
    scaled = (*steps, scale) if scale is not None else tuple(steps)
    blocks = [Block(columns=tuple(names), steps=scaled, features=tuple(names))]
    if spec.encode.number == "piecewise_linear":
        bins = PiecewiseLinear(edges=tuple(_edges(column, targets, spec.encode.bins) for column in filled.T))
        pairs = zip(names, bins.edges, strict=True)
        features = tuple(f"{name} bin {index}" for name, edges in pairs for index in range(len(edges) - 1))
        blocks.append(Block(columns=tuple(names), steps=(*steps, bins), features=features))
    holes = [name for name in names if np.isnan(np.asarray(values[name])).any()]
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


def _impute(spec: DataSpec, matrix: np.ndarray) -> Impute | ImputeNeighbors:
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
