"""Which trial is stopped early: Ray's schedulers behind one guard, restored from the journal.

Invariants
* A report that carries an outcome (diverged, out of memory, failed) stops its trial and never counts as a value:
  Ray's own comparisons with NaN are never true, so that such a trial would run to its end.
* After a restart a scheduler is what it was: the reports of ended trials are played into a new one, because Tune 2.60
  does not save it (`_scheduler_alg` is dropped in `TuneController.__getstate__`).
* Epochs are the clock. An epoch is the whole training split at any batch size: equal epochs are equal samples.

Covered: ASHA (Li et al. 2020, arXiv 1810.05934), HyperBand as ASHA with several grace periods, the median rule.
Not covered: schedulers that pause trials or change their values while they run. PBT's result is a schedule, and the
spec that goes on to training holds values.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import numpy as np
from ray.tune.schedulers import AsyncHyperBandScheduler, FIFOScheduler, MedianStoppingRule, TrialScheduler

from cluster.runtime.ray_private import NeverPauses, put_into_bracket
from trainers.search.journal import Trial

TIME = "epoch"
VALUE = "value"
MEDIAN_TRIALS_MIN = 3  # a median of fewer says little (Ray's own value)


@dataclass(frozen=True)
class StopRule:
    """When trials stop: the part of the spec's `search` that a scheduler needs."""

    kind: str
    mode: str
    epochs: int
    grace_epochs: int
    reduction_factor: int
    seed: int = 0


@dataclass(eq=False)
class KnownTrial:
    """Stands for a trial of an earlier attempt, or of a simulation."""

    number: int
    config: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.config = {"number": self.number}

    @property
    def trial_id(self) -> str:
        return f"known-{self.number}"


class _Guard:
    """Mixed in before one of Ray's schedulers."""

    def on_trial_result(self, tune_controller: Any, trial: Any, result: dict[str, Any]) -> str:
        if result.get("outcome"):
            return str(TrialScheduler.STOP)
        return str(super().on_trial_result(tune_controller, trial, result))  # type: ignore[misc]

    def on_trial_complete(self, tune_controller: Any, trial: Any, result: dict[str, Any]) -> None:
        if not result.get("outcome"):
            super().on_trial_complete(tune_controller, trial, result)  # type: ignore[misc]


class GuardedAsha(_Guard, AsyncHyperBandScheduler):
    """Ray's ASHA; with several brackets (HyperBand) a trial's bracket follows from its number."""

    def __init__(self, rule: StopRule, brackets: int) -> None:
        super().__init__(
            time_attr=TIME,
            metric=VALUE,
            mode=rule.mode,
            max_t=rule.epochs,
            grace_period=rule.grace_epochs,
            reduction_factor=rule.reduction_factor,
            brackets=brackets,
        )
        self._seed = rule.seed

    def on_trial_add(self, tune_controller: Any, trial: Any) -> None:
        """Ray draws the bracket from numpy's global generator: a restart would draw another."""
        draw = np.random.default_rng([self._seed, trial.config["number"]]).random()
        put_into_bracket(self, trial.trial_id, partial(_drawn_bracket, draw))


class GuardedMedian(_Guard, NeverPauses, MedianStoppingRule):
    """Ray's median rule; it never pauses a trial, whose training would start anew."""

    def __init__(self, rule: StopRule) -> None:
        super().__init__(
            time_attr=TIME,
            metric=VALUE,
            mode=rule.mode,
            grace_period=rule.grace_epochs,
            min_samples_required=MEDIAN_TRIALS_MIN,
        )


def _drawn_bracket(draw: float, rungs: list[int]) -> int:
    """Index of the bracket that a draw of 0..1 falls on; shares as Ray's own, by the numbers of rungs."""
    sizes = np.array(rungs)
    shares = np.exp(sizes - sizes.max())
    return min(int(np.searchsorted(np.cumsum(shares / shares.sum()), draw)), len(rungs) - 1)


def make_scheduler(rule: StopRule, known: Iterable[Trial] = ()) -> TrialScheduler:
    """A scheduler with a record of the trials that have ended."""
    scheduler: TrialScheduler
    if rule.kind == "none":
        return FIFOScheduler()
    if rule.kind == "median":
        scheduler = GuardedMedian(rule)
    else:
        rungs = len(rungs_of(rule.epochs, rule.grace_epochs, rule.reduction_factor))
        scheduler = GuardedAsha(rule, brackets=max(1, rungs - 1) if rule.kind == "hyperband" else 1)
    nobody: Any = None  # these schedulers read the trial's id and configuration only
    for trial in known:
        if trial.ended:
            stand_in: Any = KnownTrial(trial.number)
            scheduler.on_trial_add(nobody, stand_in)
            for epoch, value in sorted(trial.reports.items()):
                scheduler.on_trial_result(nobody, stand_in, {TIME: epoch, VALUE: value})
    return scheduler


def rungs_of(epochs: int, grace_epochs: int, reduction_factor: int, kind: str = "asha") -> tuple[int, ...]:
    """Epochs at which trials are compared, ascending, the last being `epochs`."""
    if kind == "none":
        return (epochs,)
    rungs = []
    rung = grace_epochs
    while rung < epochs:
        rungs.append(rung)
        rung *= reduction_factor
    return (*rungs, epochs)
