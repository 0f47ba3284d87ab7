"""Choose among encoded features by their score on the training rows.

Invariant: sees training rows only; the chosen columns keep their order; at least one is kept. A score depends on
neither the unit nor the encoding of a number. Names and scores travel in the transforms (so in the bundle) and in the
stage's facts (so in the report).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from cluster.bundle.transforms import Output, Selection
from cluster.errors import DataError
from cluster.spec.data import SelectSpec

SEED = 7  # of the estimators that draw numbers
DISCRETE_VALUES_MAX = 64  # more different values than that are a quantity (data.encode.max_categories has the same)
DISCRETE_ROWS_MIN = 10  # rows of each value on average, or the sums of a table of values are noise


@dataclass(frozen=True)
class FeatureMoments:
    """Of the encoded rows of a batch: (F,) each."""

    rows: int
    means: np.ndarray
    variances: np.ndarray
    lows: np.ndarray
    highs: np.ndarray

    @staticmethod
    def of(matrix: np.ndarray) -> FeatureMoments:
        values = matrix.astype(np.float64)
        ends = values.min(axis=0), values.max(axis=0)
        return FeatureMoments(len(values), values.mean(axis=0), values.var(axis=0), *ends)

    @staticmethod
    def pooled(parts: Sequence[FeatureMoments]) -> FeatureMoments:
        """Of all rows."""
        rows = np.array([part.rows for part in parts], dtype=np.float64)
        means, variances, lows, highs = (
            np.array([getattr(part, name) for part in parts]) for name in ("means", "variances", "lows", "highs")
        )
        mean = np.average(means, axis=0, weights=rows)
        variance = np.average(variances + (means - mean) ** 2, axis=0, weights=rows)
        return FeatureMoments(int(rows.sum()), mean, variance, lows.min(axis=0), highs.max(axis=0))

    @property
    def scores(self) -> np.ndarray:
        """(F,) variance of the feature brought to [0, 1] by its range: a standardized number has no other than 1."""
        spread = self.highs - self.lows
        return self.variances / np.where(spread > 0, spread, 1.0) ** 2


def check_k(spec: SelectSpec, num_features: int) -> None:
    """Raise DataError where more features are to be kept than there are."""
    if spec.k is not None and spec.k > num_features:
        raise DataError(
            "Cannot select features",
            found=f"data.select.k is {spec.k}, and the encoded rows have {num_features} features",
            rule="k is at most the number of features",
            remedy=f"Set data.select.k to {max(1, num_features - 1)} or fewer, or leave out data.select.",
        )


def select_features(
    spec: SelectSpec, output: Output, matrix: np.ndarray, targets: np.ndarray, classification: bool,
    moments: FeatureMoments | None = None,
) -> tuple[Output, dict[str, Any]]:  # fmt: skip
    """The output with `selected` set, and the scores. `matrix`: (N, F) training rows; `moments`: of all training rows,
    where these are a sample. Raises DataError."""
    names = output.features
    check_k(spec, len(names))
    if spec.method == "correlation":
        assert spec.threshold is not None
        scores, kept = _uncorrelated(matrix, spec.threshold)
    else:
        found = feature_scores(spec.method, matrix, targets, classification) if moments is None else moments.scores
        scores = np.nan_to_num(found)
        if spec.k is not None:
            kept = np.sort(np.argsort(-scores, kind="stable")[: spec.k])
        else:
            kept = np.flatnonzero(scores >= (spec.threshold or 0.0))
    if len(kept) == 0:
        raise DataError(
            "Cannot select features",
            found=f"none of {len(names)} reaches data.select.threshold {spec.threshold}; the best has {scores.max():g}",
            rule="at least one feature is needed",
            remedy="Lower the threshold, or give k.",
        )
    selection = Selection(
        method=spec.method,
        kept=tuple(names[index] for index in kept),
        scores={name: float(score) for name, score in zip(names, scores, strict=True)},
    )
    chosen = output.model_copy(update={"selected": tuple(int(index) for index in kept), "selection": selection})
    return chosen, selection.model_dump(mode="json")


def feature_scores(method: str, matrix: np.ndarray, targets: np.ndarray, classification: bool) -> np.ndarray:
    """(F,) scores, all but variance by scikit-learn; larger is better."""
    from sklearn import ensemble, feature_selection

    if method == "variance":
        return FeatureMoments.of(matrix).scores
    if method == "anova":
        score = feature_selection.f_classif if classification else feature_selection.f_regression
        scores = np.zeros(matrix.shape[1])
        varied = np.flatnonzero(matrix.std(axis=0) > 0)
        if len(varied):
            scores[varied] = score(matrix[:, varied], targets)[0]
        return scores
    if method == "mutual_information":
        name = "mutual_info_classif" if classification else "mutual_info_regression"
        columns, discrete = _with_codes(matrix)
        return getattr(feature_selection, name)(columns, targets, discrete_features=discrete, random_state=SEED)
    forest = ensemble.RandomForestClassifier if classification else ensemble.RandomForestRegressor
    return forest(n_estimators=100, random_state=SEED, n_jobs=1).fit(matrix, targets).feature_importances_


def _with_codes(matrix: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The rows with codes in place of columns of few different values (one-hot, indicators, ranks, counts), and (F,)
    whether a column is one: distances between neighbors say nothing of values that thousands of rows share."""
    columns, discrete = matrix.copy(), np.zeros(matrix.shape[1], dtype=bool)
    for index, column in enumerate(matrix.T):
        values, codes = np.unique(column, return_inverse=True)
        few = len(values) <= min(DISCRETE_VALUES_MAX, len(column) // DISCRETE_ROWS_MIN)
        if len(values) <= 2 or few:
            columns[:, index], discrete[index] = codes, True
    return columns, discrete


def _uncorrelated(matrix: np.ndarray, threshold: float) -> tuple[np.ndarray, np.ndarray]:
    """Largest absolute correlation of each feature with one kept before it, and the features kept."""
    spread = matrix.std(axis=0)
    safe = (matrix - matrix.mean(axis=0)) / np.where(spread == 0, 1.0, spread)
    related = np.abs(safe.T @ safe) / len(matrix)
    kept: list[int] = []
    scores = np.zeros(matrix.shape[1])
    for index in range(matrix.shape[1]):
        scores[index] = related[index, kept].max() if kept else 0.0
        if scores[index] <= threshold:
            kept.append(index)
    return scores, np.array(kept)
