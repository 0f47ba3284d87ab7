"""A search over simulated trials: the searcher and scheduler that Tune would drive, without processes or waiting.

It calls them in the order in which Ray 2.60's `TuneController._process_trial_result` does, one trial at a time, so
that what is measured in seconds here is what a search does in hours.

Covered: any `Searcher` and `TrialScheduler` that stops trials (ours, Ray's OptunaSearch and ASHA). Not covered:
schedulers that pause or change trials, stragglers.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from ray.tune.schedulers import TrialScheduler
from ray.tune.search import Searcher

from trainers.search.schedulers import TIME, VALUE, KnownTrial

Curve = Callable[[dict[str, Any]], Sequence[float]]
"""Configuration -> value after each epoch of a whole trial."""


def simulate(
    searcher: Searcher, scheduler: TrialScheduler, curve: Curve, *, budget_epochs: int, mode: str
) -> list[float]:
    """Spend `budget_epochs` and return the best value seen after each of them (at any fidelity)."""
    better = max if mode == "max" else min
    best: list[float] = []
    nobody: Any = None  # these schedulers look at the trial's id only
    number = 0
    while len(best) < budget_epochs:
        trial: Any = KnownTrial(number)
        number += 1
        config: Any = searcher.suggest(trial.trial_id)
        if not isinstance(config, dict):
            break  # the searcher has nothing left
        scheduler.on_trial_add(nobody, trial)
        for epoch, value in enumerate(curve(config), start=1):
            best.append(better(best[-1], value) if best else value)
            result = {TIME: epoch, VALUE: value, "training_iteration": epoch}
            if scheduler.on_trial_result(nobody, trial, result) == TrialScheduler.STOP:
                searcher.on_trial_complete(trial.trial_id, result)
                break
            searcher.on_trial_result(trial.trial_id, result)
            if len(best) >= budget_epochs:
                break
        else:
            scheduler.on_trial_complete(nobody, trial, result)
            searcher.on_trial_complete(trial.trial_id, result)
    return best
