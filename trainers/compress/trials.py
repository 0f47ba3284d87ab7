"""Trials as Ray tasks, cached by (parent, recipe), resumable. The only file of this folder that imports ray.

Invariant: a finished trial's folder is renamed into place as a whole, named by its digest; the same trial is never
run twice, whether the driver was killed in between or not.

Covered: any number of trials, a trial that dies (it is tried once more, then reported, and the others go on).
Not covered: folders that a worker cannot see (the run folder lies on a file system that all nodes share).
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cluster.atomic import new_folder
from trainers.compress.graph_trial import GATE, MODEL, OUTCOME, GraphTrial, run_graph_trial

RETRIES = 1  # a worker that died of another process's memory use deserves a second try
DIGEST_CHARS = 16


@dataclass(frozen=True)
class TrialOutcome:
    """What a trial left behind."""

    trial: GraphTrial
    folder: Path
    facts: dict[str, Any]
    cached: bool = False

    @property
    def stopped(self) -> str | None:
        """Why it was not measured, or None."""
        return self.facts.get("stopped")

    @property
    def model(self) -> Path:
        return self.folder / MODEL

    @property
    def gate_outputs(self) -> Path:
        return self.folder / GATE


def run_trials(
    trials: list[GraphTrial], cache: Path, *, concurrency: int = 1, run: TrialRunner | None = None
) -> list[TrialOutcome]:
    """Run what is not in the cache yet; outcomes in the order of `trials`.

    More than one new trial on a running Ray session become tasks, `concurrency` at a time; else they run here.
    """
    new = [trial for trial in trials if read_outcome(trial, cache) is None]
    runner = run or run_into
    lost: dict[str, str] = {}
    if len(new) > 1 and concurrency > 1 and ray_is_up():
        lost = _run_on_ray(new, cache, concurrency, runner)
    else:
        for trial in new:
            runner(trial, cache)
    fresh = {trial.digest for trial in new}
    return [_outcome(trial, cache, fresh, lost) for trial in trials]


TrialRunner = Callable[[GraphTrial, Path], None]


def run_into(trial: GraphTrial, cache: Path) -> None:
    """Run one trial into its folder of the cache."""
    with new_folder(trial_folder(trial, cache)) as folder:
        run_graph_trial(trial, folder)


def trial_folder(trial: GraphTrial, cache: Path) -> Path:
    return cache / f"{trial.recipe}-{trial.digest[:DIGEST_CHARS]}"


def read_outcome(trial: GraphTrial, cache: Path) -> dict[str, Any] | None:
    """The facts of a finished trial, or None."""
    try:
        return json.loads((trial_folder(trial, cache) / OUTCOME).read_text(encoding="utf-8"))
    except FileNotFoundError:
        return None


def _outcome(trial: GraphTrial, cache: Path, fresh: set[str], lost: dict[str, str]) -> TrialOutcome:
    facts = read_outcome(trial, cache) or {
        "recipe": trial.recipe,
        "notes": {},
        "stopped": f"the trial's worker died: {lost.get(trial.digest, 'no outcome was written')}",
    }
    return TrialOutcome(trial, trial_folder(trial, cache), facts, cached=trial.digest not in fresh)


def ray_is_up() -> bool:
    """Whether a Ray session runs in this process."""
    import ray

    return ray.is_initialized()


def _run_on_ray(trials: list[GraphTrial], cache: Path, concurrency: int, runner: TrialRunner) -> dict[str, str]:
    """Run trials as tasks; returns digest -> reason for those whose worker died."""
    import ray

    task = ray.remote(num_cpus=1, max_retries=RETRIES)(runner)
    waiting = list(trials)
    running: dict[Any, GraphTrial] = {}
    lost: dict[str, str] = {}
    try:
        while waiting or running:
            while waiting and len(running) < concurrency:
                trial = waiting.pop(0)
                running[task.remote(trial, cache.resolve())] = trial
            (done,), _ = ray.wait(list(running), num_returns=1)
            trial = running.pop(done)
            try:
                ray.get(done)
            except ray.exceptions.RayTaskError:
                raise
            except ray.exceptions.RayError as error:
                lost[trial.digest] = " ".join(str(error).split())[:200]
    finally:
        for reference in running:
            ray.cancel(reference, force=True)
    return lost
