"""Remedies measured: each change of a finding in a short training of its own, against the run as it is.

Invariant: the run's folder is only read; a change is kept where its best metric beats that of the run as it is, in
trainings of the same length, seed and rows.

Covered: one worker in this process. Not covered: more than one change at a time.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cluster.errors import DivergedError, MemoryShortError
from cluster.spec.resolve import ResolvedRun
from cluster.telemetry.events import NullSink
from trainers.diagnose.findings import Finding

EPOCHS_LEAST, EPOCHS_MOST = 5, 30  # of a short training: long enough for a trend, short enough to wait for
GAIN_LEAST = 0.01  # relative: less is the noise of another order of sums


@dataclass(frozen=True)
class Measured:
    """What came of a change."""

    change: dict[str, Any]
    value: float | None
    """Best value of the metric over its epochs; None where it diverged or did not fit."""


def measure(resolved: ResolvedRun, prepared: Path, changes: Sequence[dict[str, Any]]) -> list[Measured]:
    """The run as it is first, then each change. Blocks for as many short trainings."""
    epochs = max(EPOCHS_LEAST, min(EPOCHS_MOST, resolved.spec.train.epochs))
    return [Measured(change, _best_of(resolved, prepared, change, epochs)) for change in ({}, *changes)]


def winner(resolved: ResolvedRun, measured: Sequence[Measured]) -> Measured:
    """The change that is best by more than noise, or the run as it is."""
    sign = 1 if resolved.spec.train.best.direction == "min" else -1
    as_it_is = measured[0]
    known = [one for one in measured if one.value is not None]
    best = min(known, key=lambda one: sign * float(one.value or 0.0), default=as_it_is)
    if as_it_is.value is None or best.value is None:
        return best
    gain = sign * (as_it_is.value - best.value)
    return best if gain > GAIN_LEAST * abs(as_it_is.value) else as_it_is


def changes_of(finding: Finding) -> tuple[dict[str, Any], ...]:
    """All that a finding proposes."""
    return tuple(change for change in (finding.change, *finding.others) if change)


def _best_of(resolved: ResolvedRun, prepared: Path, change: dict[str, Any], epochs: int) -> float | None:
    """In a longer training only where the change is that."""
    from trainers.loop import FitRequest, fit

    factor = change.get("train.epochs", resolved.spec.train.epochs) / resolved.spec.train.epochs
    tried = resolved.with_values({**change, "train.epochs": round(epochs * factor), "train.workers": 1})
    request = FitRequest(
        train=tried.spec.train,
        batch=tried.batch.for_workers(1),
        model=tried.spec.model,
        seed=tried.spec.seed,
        prepared=prepared,
        stage="diagnose",
        checkpoints=None,
    )
    try:
        return fit(request, sink=NullSink()).metrics.get(tried.spec.train.best.metric)
    except (DivergedError, MemoryShortError):
        return None
