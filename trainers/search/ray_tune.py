"""Ray Tune, driven by our study: the searcher, the ASHA scheduler and one `Tuner.fit`.

Invariants
* Tune takes every configuration from this searcher and hands it every report, so that nothing about a search lives in
  Tune alone: its experiment folder is temporary, the journal is what a restart reads.
* The death of a trial's process is retried once, from its first epoch; every other end is an outcome (trial.py).

Covered: searcher, scheduler, concurrency, actor reuse, a driver that was killed. Not covered: which point is next
(study.py), more than one worker a trial (search trials train with one).

Cost (two busy cores, ray 2.60.0): see benchmarks/search/README.md. Actors are reused on a CPU, which saves an
import of torch a trial; never with CUDA, where memory of one trial may stay behind for the next (ray#23971).
"""

from __future__ import annotations

import logging
from dataclasses import dataclass
from typing import Any, Protocol, cast

from ray import tune
from ray.tune.schedulers import TrialScheduler
from ray.tune.search import Searcher

from cluster.temporary import scratch_folder
from trainers.search.journal import Trial
from trainers.search.schedulers import TIME, VALUE
from trainers.search.study import Study
from trainers.search.trial import TrialSetup, run_trial
from trainers.search.trial_failures import MEMORY_NOTE, killed_for_memory, translated_failures

PROCESS_RETRIES = 1


class Listener(Protocol):
    """Called at each change of a trial, in the driver."""

    def __call__(self, trial: Trial) -> None: ...


@dataclass(frozen=True)
class TuneSettings:
    """How trials are run; computed from the spec and the host."""

    num_trials: int
    """Trials still to run."""
    concurrency: int
    use_gpu: bool
    name: str
    """Unique a search: names the experiment."""


class StudySearcher(Searcher):
    """Tune's searcher interface over a study."""

    def __init__(self, study: Study, listen: Listener) -> None:
        super().__init__(metric=VALUE, mode=study.settings.mode)
        self._study = study
        self._listen = listen
        self._numbers: dict[str, int] = {}

    def suggest(self, trial_id: str) -> dict[str, Any] | None:
        trial = self._study.ask()
        if trial is None:
            finished: Any = Searcher.FINISHED  # a text, by Tune's protocol
            return cast("dict[str, Any] | None", finished)
        self._numbers[trial_id] = trial.number
        self._listen(trial)
        return {"values": trial.values, "number": trial.number}

    def on_trial_result(self, trial_id: str, result: dict[str, Any]) -> None:
        self._take(trial_id, result)

    def on_trial_complete(self, trial_id: str, result: dict[str, Any] | None = None, error: bool = False) -> None:
        number = self._numbers[trial_id]
        if result and not error:
            self._take(trial_id, result)
        trial = self._study.trials[number]
        if trial.ended:
            return
        if killed_for_memory():
            self._study.end(number, "oom", MEMORY_NOTE)
        elif error or not result:
            self._study.end(number, "failed", "the trial's process died or raised; see the log")
        else:
            whole = trial.epochs >= self._study.settings.rungs[-1]
            self._study.end(number, "done" if whole else "stopped")
        self._listen(trial)

    def save(self, checkpoint_path: str) -> None:
        """Nothing: the journal is the memory of a search."""

    def restore(self, checkpoint_path: str) -> None:
        """Nothing: a search is rebuilt from its journal."""

    def _take(self, trial_id: str, result: dict[str, Any]) -> None:
        """Hand one report on; a report that Tune repeats changes nothing."""
        number = self._numbers[trial_id]
        trial = self._study.trials[number]
        outcome = result.get("outcome", "")
        if outcome:
            self._study.end(number, outcome, str(result.get("note", "")))
        elif result[TIME] not in trial.reports:
            metrics = {key.removeprefix("metrics/"): item for key, item in _metrics_of(result).items()}
            self._study.report(number, int(result[TIME]), float(result[VALUE]), metrics)
        else:
            return
        self._listen(trial)


def run_tune(searcher: Searcher, scheduler: TrialScheduler, setup: TrialSetup, settings: TuneSettings) -> None:
    """Run trials until the budget is spent. Needs a Ray session; blocks. The searcher has the results."""
    logging.getLogger("ray.tune").setLevel(logging.ERROR)
    resources: dict[str, float] = {"cpu": 1, "gpu": 1} if settings.use_gpu else {"cpu": 1}
    with scratch_folder("tune") as scratch, translated_failures():
        tuner = tune.Tuner(
            tune.with_resources(tune.with_parameters(run_trial, setup=setup), resources),
            tune_config=tune.TuneConfig(
                search_alg=searcher,
                scheduler=scheduler,
                num_samples=settings.num_trials,
                max_concurrent_trials=settings.concurrency,
                reuse_actors=not settings.use_gpu,
            ),
            run_config=tune.RunConfig(
                name=settings.name,
                storage_path=str(scratch),
                verbose=0,
                failure_config=tune.FailureConfig(max_failures=PROCESS_RETRIES),
            ),
        )
        tuner.fit()


def _metrics_of(result: dict[str, Any]) -> dict[str, float]:
    """A report's metrics, which Tune may hand on flattened (`metrics/validation.loss`)."""
    nested = result.get("metrics")
    if isinstance(nested, dict):
        return nested
    return {key: item for key, item in result.items() if key.startswith("metrics/")}
