"""A simulated search spends exactly its budget, calls Ray's objects as Tune does, and is the search that is shipped."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
from optuna.distributions import FloatDistribution
from ray.tune.schedulers import FIFOScheduler

from benchmarks.search.simulate import simulate
from trainers.search.journal import Journal
from trainers.search.ray_tune import StudySearcher
from trainers.search.schedulers import StopRule, make_scheduler, rungs_of
from trainers.search.study import Study, StudySettings

SPACE = {name: FloatDistribution(0.0, 1.0) for name in ("x", "y")}
EPOCHS = 18


def curve(values: dict[str, Any]) -> list[float]:
    """Falls to the distance from (0.3, 0.7), faster near it."""
    distance = math.hypot(values["x"] - 0.3, values["y"] - 0.7)
    return [distance + 1.0 / epoch for epoch in range(1, EPOCHS + 1)]


def search(kind: str, budget: int, seed: int = 7) -> tuple[list[float], Study]:
    study = Study(StudySettings(SPACE, "min", seed, rungs_of(EPOCHS, 2, 3, kind)), Journal(None))
    scheduler = make_scheduler(StopRule(kind, "min", EPOCHS, 2, 3, seed))
    searcher = StudySearcher(study, lambda trial: None)
    best = simulate(searcher, scheduler, lambda config: curve(config["values"]), budget_epochs=budget, mode="min")
    return best, study


@pytest.mark.parametrize("kind", ["asha", "hyperband", "none"])
def test_the_budget_is_spent_to_the_epoch(kind: str) -> None:
    best, study = search(kind, 120)
    assert len(best) == 120 == sum(trial.epochs for trial in study.trials)
    assert best == sorted(best, reverse=True)


def test_early_stopping_tries_more_points_for_the_same_epochs() -> None:
    stopped, whole = search("asha", 360)[1], search("none", 360)[1]
    assert len(stopped.trials) > 1.5 * len(whole.trials) == 30
    assert {trial.state for trial in stopped.trials[:-1]} == {"done", "stopped"}


def test_a_model_is_made_of_rungs_above_the_first() -> None:
    sources = [trial.source for trial in search("asha", 420)[1].trials]
    assert sources[0] == "quasi-random"
    assert "tpe@6" in sources
    assert "tpe@2" not in sources


def test_rays_own_searcher_runs_under_the_same_harness() -> None:
    from ray.tune.search.optuna import OptunaSearch

    searcher = OptunaSearch(space=dict(SPACE), metric="value", mode="min", seed=7)
    best = simulate(searcher, FIFOScheduler(), curve, budget_epochs=90, mode="min")
    assert len(best) == 90


@pytest.mark.soak
def test_it_beats_rays_own_search_on_lcbench_at_equal_epochs(shared_data: Path) -> None:
    """A small cut of benchmarks/search: 12 data sets, one seed, 25 trainings; its table has all of them."""
    from benchmarks.search.lcbench import opened
    from benchmarks.search.run import run_method

    folder = shared_data / "lcbench"
    names = opened(folder).data_sets[:12]
    ours, rays = (run_method(method, folder, names, 1, (25,))["mean"]["25"] for method in ("manta", "ray"))
    assert ours < rays
