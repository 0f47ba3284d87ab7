"""Quality of predictions, as plain numbers: what the report, the gate and the manifest quote.

Invariant: every number is finite; a metric that is not defined for the data (ROC AUC with one class in the targets)
is left out, never written as 0 or NaN.

Covered: classification from logits, regression from values; all by scikit-learn, but for the bins of the calibration
error, which it does not count. Not covered: intervals (trainers/compress/accuracy_gate.py).
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from sklearn import metrics as sk
from sklearn.calibration import calibration_curve

from cluster.errors import ModelError

CALIBRATION_BINS = 15  # arXiv:1706.04599, the value that later work compares by


def classification_metrics(logits: np.ndarray, targets: np.ndarray, classes: tuple[str, ...]) -> dict[str, Any]:
    """Metrics, per-class table and confusion matrix.

    Args:
        logits: (N, C) float32.
        targets: (N,) int64 class indices.
        classes: labels by index.

    Returns:
        `{"metrics": {name: float}, "per_class": [{class, precision, recall, f1, support}], "confusion": [[int]]}`;
        rows of the confusion matrix are true classes.
    """
    check_finite(logits, "evaluate")
    labels = np.arange(len(classes))
    predicted = logits.argmax(axis=1)
    probabilities = softmax(logits)
    precision, recall, f1, support = sk.precision_recall_fscore_support(
        targets, predicted, labels=labels, zero_division=0.0
    )
    metrics = {
        "accuracy": float(sk.accuracy_score(targets, predicted)),
        "balanced_accuracy": float(recall[support > 0].mean()),
        "loss": float(sk.log_loss(targets, probabilities, labels=labels)),
        "macro_precision": float(precision.mean()),
        "macro_recall": float(recall.mean()),
        "macro_f1": float(f1.mean()),
        "calibration_error": calibration_error(probabilities, targets),
    }
    metrics.update(_ranking_metrics(probabilities, targets, len(classes)))
    table = zip(classes, precision, recall, f1, support, strict=True)
    per_class = [
        {"class": name, "precision": float(p), "recall": float(r), "f1": float(f), "support": int(n)}
        for name, p, r, f, n in table
    ]
    confusion = sk.confusion_matrix(targets, predicted, labels=labels)
    return {"metrics": metrics, "per_class": per_class, "confusion": confusion.tolist()}


def regression_metrics(values: np.ndarray, targets: np.ndarray) -> dict[str, Any]:
    """RMSE, MAE and R² of (N, 1) or (N,) predictions; R² is left out for constant targets."""
    check_finite(values, "evaluate")
    values = values.reshape(len(targets), -1)[:, 0].astype(np.float64)
    targets = targets.astype(np.float64)
    mse = float(sk.mean_squared_error(targets, values))
    metrics = {"loss": mse, "rmse": math.sqrt(mse), "mae": float(sk.mean_absolute_error(targets, values))}
    if len(targets) > 1 and float(targets.std()) > 0:
        metrics["r2"] = float(sk.r2_score(targets, values))
    return {"metrics": metrics, "per_class": [], "confusion": []}


def softmax(logits: np.ndarray) -> np.ndarray:
    """(N, C) probabilities in float64; stable for large logits."""
    shifted = logits.astype(np.float64) - logits.max(axis=1, keepdims=True)
    exponent = np.exp(shifted)
    return exponent / exponent.sum(axis=1, keepdims=True)


def calibration_error(probabilities: np.ndarray, targets: np.ndarray) -> float:
    """Expected calibration error of the predicted class: Σ over bins of rows / N · |accuracy - confidence|.

    0 where a model that is 80 % sure is right in 80 % of the cases. Bins have equal width (arXiv:1706.04599).
    """
    confidence = probabilities.max(axis=1).clip(0.0, 1.0)
    right = probabilities.argmax(axis=1) == targets
    accuracy, mean_confidence = calibration_curve(right, confidence, n_bins=CALIBRATION_BINS, pos_label=True)
    edges = np.linspace(0.0, 1.0, CALIBRATION_BINS + 1)[1:-1]
    rows = np.bincount(np.searchsorted(edges, confidence), minlength=CALIBRATION_BINS)  # calibration_curve's own bins
    return float(np.average(np.abs(accuracy - mean_confidence), weights=rows[rows > 0]))


def check_finite(values: np.ndarray, where: str) -> None:
    """Raise ModelError when predictions hold NaN or infinity."""
    bad = int((~np.isfinite(values)).any(axis=tuple(range(1, values.ndim))).sum()) if values.size else 0
    if bad:
        raise ModelError(
            f"Cannot {where} the model",
            found=f"{bad} of {len(values)} rows have NaN or infinite outputs",
            rule="predictions must be finite",
            remedy="Lower train.optimizer.learning_rate, or look for extreme values in the data.",
        )


def _ranking_metrics(probabilities: np.ndarray, targets: np.ndarray, num_classes: int) -> dict[str, float]:
    """ROC AUC and average precision, where all classes occur in the targets."""
    if len(np.unique(targets)) < num_classes or num_classes < 2:
        return {}
    if num_classes == 2:
        score = probabilities[:, 1]
        return {
            "roc_auc": float(sk.roc_auc_score(targets, score)),
            "average_precision": float(sk.average_precision_score(targets, score)),
        }
    onehot = np.eye(num_classes, dtype=np.int8)[targets]
    return {
        "roc_auc": float(sk.roc_auc_score(targets, probabilities, multi_class="ovr", average="macro")),
        "average_precision": float(sk.average_precision_score(onehot, probabilities, average="macro")),
    }
