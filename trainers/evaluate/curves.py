"""What the report draws about predictions: ROC, precision-recall and reliability curves, points of a residual plot.

Invariant: compact and deterministic: at most CURVE_POINTS points a curve and POINTS_MAX points a scatter, and the same
predictions give the same JSON. Areas are computed before a curve is thinned.

Covered: two classes by the second one's probability; more by one against the rest, with micro and macro averages;
regression. Not covered: how it looks (cluster/report/evaluation.py).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from sklearn import metrics as sk

from trainers.evaluate.metrics import CALIBRATION_BINS, softmax

CURVE_POINTS = 200  # a panel of the report is 440 pixels wide
POINTS_MAX = 500  # more dots hide one another
SCORES_MAX = 1_000_000  # rows × classes that are sorted: half a second; of more, a sample of the rows is drawn
CLASSES_DRAWN = 10  # of more classes, those that are ranked worst
CLASSES_MAX = 200  # beyond, only the micro average: a curve a class would cost more than it shows
BINS_TWO_CLASSES = 10
TREND_BINS = 10
WILSON_Z = 1.959964  # 95 %
GRID = np.linspace(0.0, 1.0, 101)
Curve = tuple[np.ndarray, np.ndarray]


def classification_curves(logits: np.ndarray, targets: np.ndarray, classes: Sequence[str]) -> dict[str, Any]:
    """Curves of (N, C) logits. A class that has no rows, or all of them, has no curve.

    Returns:
        `{"rows", "rows_all", "classes", "roc": [curve], "precision_recall": [curve], "calibration": {…}}`, a curve
        being `{"name", "kind": "class" | "micro" | "macro", "x", "y", "area", "share"}`.
    """
    rows = _sample(len(targets), max(CURVE_POINTS, SCORES_MAX // max(1, len(classes))))
    probabilities, targets = softmax(logits[rows]), targets[rows]
    found = _two_classes if len(classes) == 2 else _many_classes
    roc, precision_recall = found(probabilities, targets, classes)
    return {
        "rows": len(rows),
        "rows_all": len(logits),
        "classes": len(classes),
        "roc": roc,
        "precision_recall": precision_recall,
        "calibration": _calibration(probabilities, targets, classes),
    }


def regression_points(values: np.ndarray, targets: np.ndarray) -> dict[str, Any]:
    """Predicted and true values of a sample of rows, and how the residuals (truth - prediction) of all rows lie."""
    predicted = values.reshape(len(targets), -1)[:, 0].astype(np.float64)
    actual = targets.astype(np.float64)
    residuals = actual - predicted
    rows = _sample(len(actual), POINTS_MAX)
    low, median, high = np.quantile(residuals, [0.05, 0.5, 0.95])
    return {
        "rows": len(rows),
        "rows_all": len(actual),
        "predicted": _significant(predicted[rows]),
        "actual": _significant(actual[rows]),
        "residuals": dict(
            zip(("mean", "p05", "p50", "p95"), _significant([residuals.mean(), low, median, high]), strict=True)
        ),
        "trend": _trend(predicted, residuals),
    }


def _two_classes(probabilities: np.ndarray, targets: np.ndarray, classes: Sequence[str]) -> tuple[list, list]:
    return _pair(classes[1], "class", targets == 1, probabilities[:, 1])[:2]


def _many_classes(probabilities: np.ndarray, targets: np.ndarray, classes: Sequence[str]) -> tuple[list, list]:
    roc, precision_recall = _pair(
        "micro average", "micro", _one_hot(targets, len(classes)).ravel(), probabilities.ravel()
    )[:2]
    if len(classes) > CLASSES_MAX:
        return roc, precision_recall
    pairs = [
        _pair(name, "class", targets == index, probabilities[:, index])
        for index, name in enumerate(classes)
        if 0 < int((targets == index).sum()) < len(targets)
    ]
    if not pairs:
        return roc, precision_recall
    for place, into in ((0, roc), (1, precision_recall)):
        curves = [pair[place][0] for pair in pairs]
        heights = np.mean([pair[2 + place] for pair in pairs], axis=0)
        area = float(np.mean([curve["area"] for curve in curves]))
        into.append(_curve("macro average", "macro", (GRID, heights), area))
        worst = sorted(range(len(curves)), key=lambda at: curves[at]["area"])[:CLASSES_DRAWN]
        into.extend(curves[at] for at in sorted(worst))
    return roc, precision_recall


def _pair(name: str, kind: str, right: np.ndarray, scores: np.ndarray) -> tuple[list, list, np.ndarray, np.ndarray]:
    """ROC and precision-recall curve of scores for a yes-or-no question, each also as heights over GRID."""
    if not 0 < int(right.sum()) < len(right):
        return [], [], GRID, GRID
    false, true, _ = sk.roc_curve(right, scores)
    precision, recall, _ = sk.precision_recall_curve(right, scores, drop_intermediate=True)
    precision, recall = precision[::-1], recall[::-1]
    at = np.searchsorted(recall, GRID).clip(0, len(recall) - 1)  # the precision at which a share is found
    roc = _curve(name, kind, (false, true), float(sk.auc(false, true)))
    ranked = _curve(name, kind, (recall, precision), float(sk.average_precision_score(right, scores)))
    share = round(float(right.mean()), 4)  # what a ranking by chance has for a precision
    return [roc], [{**ranked, "share": share}], np.interp(GRID, false, true), precision[at]


def _curve(name: str, kind: str, curve: Curve, area: float) -> dict[str, Any]:
    xs, ys = thinned(*curve)
    return {
        "name": name,
        "kind": kind,
        "x": np.round(xs, 4).tolist(),
        "y": np.round(ys, 4).tolist(),
        "area": round(area, 6),
    }


def thinned(xs: np.ndarray, ys: np.ndarray, limit: int = CURVE_POINTS) -> Curve:
    """At most `limit` of a curve's points, evenly spaced along its length, both ends among them."""
    if len(xs) <= limit:
        return xs, ys
    way = np.concatenate([[0.0], np.cumsum(np.abs(np.diff(xs)) + np.abs(np.diff(ys)))])
    at = np.unique(np.searchsorted(way, np.linspace(0.0, way[-1], limit)).clip(0, len(xs) - 1))
    at[-1] = len(xs) - 1
    return xs[at], ys[at]


def _calibration(probabilities: np.ndarray, targets: np.ndarray, classes: Sequence[str]) -> dict[str, Any]:
    """Stated against reached: of the second class's probability, or of the answer's where there are more classes."""
    if len(classes) == 2:
        return {"about": classes[1], **reliability(probabilities[:, 1], targets == 1, BINS_TWO_CLASSES)}
    right = probabilities.argmax(axis=1) == targets
    return {"about": None, **reliability(probabilities.max(axis=1), right, CALIBRATION_BINS)}


def reliability(stated: np.ndarray, right: np.ndarray, bins: int) -> dict[str, list]:
    """Bins of equal width that hold rows: mean probability, share that came true with its Wilson interval, rows."""
    place = np.searchsorted(np.linspace(0.0, 1.0, bins + 1)[1:-1], stated)
    rows = np.bincount(place, minlength=bins)
    filled = rows > 0
    n = rows[filled].astype(np.float64)
    share = np.bincount(place, weights=right, minlength=bins)[filled] / n
    square = WILSON_Z**2
    middle = (share + square / (2 * n)) / (1 + square / n)
    half = WILSON_Z * np.sqrt(share * (1 - share) / n + square / (4 * n * n)) / (1 + square / n)
    columns = {
        "x": np.bincount(place, weights=stated, minlength=bins)[filled] / n,
        "y": share,
        "low": (middle - half).clip(0.0, 1.0),
        "high": (middle + half).clip(0.0, 1.0),
    }
    return {**{name: np.round(values, 4).tolist() for name, values in columns.items()}, "rows": rows[filled].tolist()}


def _trend(predicted: np.ndarray, residuals: np.ndarray) -> dict[str, list]:
    """Median residual in bins of equally many predictions: a slope or a bow is what the model has not learned."""
    order = np.argsort(predicted, kind="stable")
    parts = [part for part in np.array_split(order, min(TREND_BINS, len(order))) if len(part)]
    return {
        "x": _significant([predicted[part].mean() for part in parts]),
        "y": _significant([np.median(residuals[part]) for part in parts]),
    }


def _one_hot(targets: np.ndarray, num_classes: int) -> np.ndarray:
    return targets[:, None] == np.arange(num_classes)


def _sample(rows: int, limit: int) -> np.ndarray:
    """Ascending rows, all of them where they are few."""
    if rows <= limit:
        return np.arange(rows)
    return np.sort(np.random.default_rng(0).choice(rows, limit, replace=False))


def _significant(values: Any) -> list[float]:
    return [float(f"{value:.6g}") for value in values]
