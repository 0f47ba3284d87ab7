"""Reduce on plateau: a factor on top of the schedule, moved by metrics.

Invariant: a pure function of the metrics in their order; its state is three numbers.

Covered: both directions, delta, floor. Not covered: cool-down.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from cluster.spec.optimizer import PlateauSpec
from cluster.spec.train import BestSpec, TrainSpec
from cluster.telemetry.events import EpochFinished


@dataclass
class Plateau:
    """Product of all reductions so far, and how long the metric has not improved."""

    factor: float = 1.0
    best: float | None = None
    epochs_without: int = 0

    def observe(self, value: float, spec: PlateauSpec, best: BestSpec) -> None:
        """After an epoch."""
        if improves(value, self.best, best.direction, spec.min_delta):
            self.best, self.epochs_without = value, 0
            return
        self.epochs_without += 1
        if self.epochs_without > spec.patience:
            self.factor = max(spec.floor, self.factor * spec.factor)
            self.epochs_without = 0


def improves(value: float, best: float | None, mode: str, min_delta: float = 0.0) -> bool:
    """Whether `value` is better than `best` by more than `min_delta`. A value that is not finite never is."""
    if not math.isfinite(value):
        return False
    if best is None:
        return True
    return value < best - min_delta if mode == "min" else value > best + min_delta


def epochs_without(train: TrainSpec, history: Sequence[EpochFinished]) -> int:
    """Epochs since the best metric last improved by the early-stopping delta."""
    best, without, delta = None, 0, train.early_stopping.min_delta if train.early_stopping else 0.0
    for event in history:
        value = event.metrics.get(train.best.metric, math.nan)
        without = 0 if improves(value, best, train.best.direction, delta) else without + 1
        best = value if improves(value, best, train.best.direction) else best
    return without
