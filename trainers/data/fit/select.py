"""Choose among encoded features by their score on the training rows.

Invariant: sees training rows only; the chosen columns keep their order; at least one is kept. Names and scores
travel in the transforms (so in the bundle) and in the stage's facts (so in the report).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from cluster.bundle.transforms import Output, Selection
from cluster.errors import DataError
from cluster.spec.data import SelectSpec

SEED = 7  # of the estimators that draw numbers


def select_features(
    spec: SelectSpec, output: Output, matrix: np.ndarray, targets: np.ndarray, classification: bool,
    variances: np.ndarray | None = None,
) -> tuple[Output, dict[str, Any]]:  # fmt: skip
    """The output with `selected` set, and the scores. `matrix`: (N, F) training rows; `variances`: (F,) of all training
    rows, where these are a sample. Raises DataError."""
    names = output.features
    if spec.method == "correlation":
        assert spec.threshold is not None
        scores, kept = _uncorrelated(matrix, spec.threshold)
    else:
        if variances is None:
            variances = feature_scores(spec.method, matrix, targets, classification)
        scores = np.nan_to_num(variances)
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
    """(F,) scores by scikit-learn; larger is better."""
    from sklearn import ensemble, feature_selection

    if method == "variance":
        return matrix.var(axis=0, dtype=np.float64)
    if method == "anova":
        score = feature_selection.f_classif if classification else feature_selection.f_regression
        scores = np.zeros(matrix.shape[1])
        varied = np.flatnonzero(matrix.std(axis=0) > 0)
        if len(varied):
            scores[varied] = score(matrix[:, varied], targets)[0]
        return scores
    if method == "mutual_information":
        name = "mutual_info_classif" if classification else "mutual_info_regression"
        return getattr(feature_selection, name)(matrix, targets, random_state=SEED)
    forest = ensemble.RandomForestClassifier if classification else ensemble.RandomForestRegressor
    return forest(n_estimators=100, random_state=SEED, n_jobs=1).fit(matrix, targets).feature_importances_


def pooled_variances(parts: Sequence[tuple[int, np.ndarray, np.ndarray]]) -> np.ndarray:
    """(F,) variances of all rows, of the (rows, means, variances) of their batches."""
    rows, means, variances = (np.array(column, dtype=np.float64) for column in zip(*parts, strict=True))
    apart = means - np.average(means, axis=0, weights=rows)
    return np.average(variances + apart**2, axis=0, weights=rows)


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
