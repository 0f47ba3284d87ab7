"""What a training is measured against: one answer for every row, and a quick model where the evaluate stage has one.

Invariant: a pure function of what the run has prepared and of the facts of its evaluate stage.

Covered: classification, regression. Not covered: targets of several items a row.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from cluster.store.stage_facts import EvaluateFacts
from trainers.data.shards import PreparedData, Split

HEADLINES = ("accuracy", "r2")


@dataclass(frozen=True)
class Reference:
    """Figures reached without a network."""

    constant_loss: float | None = None
    """Validation loss of one answer for every row: entropy of the classes, or variance of the quantity."""
    model: str = ""
    """Name of the quick model; empty where there is none."""
    metric: str = ""
    """By which the three below are compared, on test rows; more is better."""
    network: float = 0.0
    constant: float = 0.0
    quick: float = 0.0


def reference_of(prepared: PreparedData | None, facts: EvaluateFacts | None = None) -> Reference:
    """From the prepared validation and training rows, and from what evaluate has found where it has run."""
    loss = constant_loss(prepared) if prepared is not None else None
    model = (facts.baseline or {}).get("model") if facts else None
    if facts is None or not model:
        return Reference(loss)
    name = next((name for name in HEADLINES if name in facts.metrics and name in model["metrics"]), "")
    if not name:
        return Reference(loss)
    answer = (facts.baseline or {})["constant"]["metrics"].get(name, 0.0)
    return Reference(loss, model["name"], name, facts.metrics[name], answer, model["metrics"][name])


def constant_loss(prepared: PreparedData) -> float | None:
    """Mean loss over the validation rows of the training rows' class shares, or of their mean."""
    train, validation = prepared.splits["train"], prepared.splits["validation"]
    if not len(validation) or np.asarray(train.targets).ndim != 1:
        return None
    goal, seen = np.asarray(validation.targets), np.asarray(train.targets)
    if prepared.task == "regression":
        mean = np.average(seen.astype(np.float64), weights=train.weights)
        return float(np.average((goal.astype(np.float64) - mean) ** 2, weights=validation.weights))
    shares = np.bincount(seen[seen >= 0], minlength=len(prepared.classes)) + 1.0  # a class without rows is possible
    losses = -np.log(shares / shares.sum())[goal[goal >= 0]]
    return float(np.average(losses, weights=_valid_weights(validation, goal))) if len(losses) else None


def _valid_weights(split: Split, goal: np.ndarray) -> np.ndarray | None:
    return None if split.weights is None else np.asarray(split.weights)[goal >= 0]
