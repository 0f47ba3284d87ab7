"""Ray's schedulers under our guard, driven without Ray's actors."""

from __future__ import annotations

from typing import Any

import pytest
from optuna.distributions import FloatDistribution
from ray.tune.schedulers import FIFOScheduler, TrialScheduler

from trainers.search.journal import Journal
from trainers.search.schedulers import GuardedAsha, GuardedMedian, KnownTrial, StopRule, make_scheduler, rungs_of
from trainers.search.study import Study, StudySettings

NOBODY: Any = None


def rule(kind: str = "asha", epochs: int = 9, seed: int = 7) -> StopRule:
    return StopRule(kind, "min", epochs, 2, 3, seed)


class Driver:
    """Calls a scheduler as Tune does."""

    def __init__(self, scheduler: TrialScheduler, first: int = 100) -> None:
        self.scheduler = scheduler
        self.trials: dict[str, Any] = {}
        self.first = first

    def decide(self, name: str, epoch: int, value: float, outcome: str = "") -> str:
        if name not in self.trials:
            self.trials[name] = KnownTrial(self.first + len(self.trials))
            self.scheduler.on_trial_add(NOBODY, self.trials[name])
        report = {"epoch": epoch, "value": value, "outcome": outcome}
        return self.scheduler.on_trial_result(NOBODY, self.trials[name], report)


def test_a_worse_trial_stops_at_its_rung_and_a_better_one_goes_on() -> None:
    tune = Driver(make_scheduler(rule()))
    assert tune.decide("a", 2, 0.5) == "CONTINUE"
    assert tune.decide("b", 1, 0.9) == "CONTINUE"  # no trial stops before its grace period
    assert tune.decide("b", 2, 0.9) == "STOP"
    assert tune.decide("c", 2, 0.1) == "CONTINUE"


@pytest.mark.parametrize("kind", ["asha", "hyperband", "median"])
def test_a_trial_that_diverged_stops_and_leaves_no_value_behind(kind: str) -> None:
    """Ray's own comparison with NaN is never true: such a trial would run to the end."""
    tune = Driver(make_scheduler(rule(kind)))
    assert tune.decide("a", 2, 0.0, outcome="diverged") == "STOP"
    assert tune.decide("b", 2, 0.9) == "CONTINUE"


def test_rungs_are_what_they_were_after_a_restart() -> None:
    """Tune 2.60 drops the scheduler's state; here the study's reports are played into a new one."""
    before = Study(StudySettings({"x": FloatDistribution(0, 1)}, "min", 7, (2, 6, 9)), Journal(None))
    for value in (0.3, 0.6):
        number = before.ask().number  # type: ignore[union-attr]
        before.report(number, 1, value)
        before.report(number, 2, value)
        before.end(number, "stopped")
    unfinished = before.ask()
    assert unfinished is not None
    before.report(unfinished.number, 2, 0.01)  # will be reported again: must not count twice
    tune = Driver(make_scheduler(rule(), before.trials))
    assert tune.decide("new", 2, 0.55) == "STOP"
    assert tune.decide("good", 2, 0.25) == "CONTINUE"


def test_the_median_rule_stops_below_the_median_and_never_pauses() -> None:
    tune = Driver(make_scheduler(rule("median")))
    for index, name in enumerate("abc"):
        for epoch in (1, 2, 3):
            assert tune.decide(name, epoch, 0.1 * (index + 1)) == "CONTINUE"
    assert [tune.decide("bad", epoch, 0.9) for epoch in (1, 2)] == ["CONTINUE", "STOP"]


def test_hyperband_gives_some_trials_a_longer_grace_period_and_a_restart_the_same_ones() -> None:
    def stops(seed: int) -> list[bool]:
        tune = Driver(make_scheduler(rule("hyperband", epochs=60, seed=seed)))
        for name in ("best", "second", "third"):  # fill the rungs of every bracket
            for number in range(8):
                tune.decide(f"{name}{number}", 2, 0.01)
        return [tune.decide(f"w{n}", 2, 0.9) == "STOP" for n in range(30)]

    assert stops(7) == stops(7)
    assert 0 < sum(stops(7)) < 30
    assert stops(7) != stops(8)


@pytest.mark.parametrize(
    ("kind", "expected"),
    [("asha", GuardedAsha), ("hyperband", GuardedAsha), ("median", GuardedMedian), ("none", FIFOScheduler)],
)
def test_the_spec_chooses_the_scheduler(kind: str, expected: type[TrialScheduler]) -> None:
    assert type(make_scheduler(rule(kind))) is expected


def test_rungs_end_with_the_whole_trial() -> None:
    assert rungs_of(52, 2, 3) == (2, 6, 18, 52)
    assert rungs_of(4, 2, 3) == (2, 4)
    assert rungs_of(9, 2, 3, "none") == (9,)
    assert rungs_of(2, 2, 3) == (2,)
