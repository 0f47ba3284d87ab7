"""Ray's ASHA under our guard, driven without Ray's actors."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

from optuna.distributions import FloatDistribution

from trainers.search.journal import Journal
from trainers.search.study import Study, StudySettings
from trainers.search.tuner import GuardedAsha, make_scheduler

NOBODY: Any = None


def trial(name: str) -> Any:
    return SimpleNamespace(trial_id=name)


def study() -> Study:
    return Study(StudySettings({"x": FloatDistribution(0, 1)}, "min", 7, (2, 6, 9)), Journal(None))


def asha(of: Study) -> GuardedAsha:
    scheduler = make_scheduler(of, 2, 3, early_stopping=True)
    assert isinstance(scheduler, GuardedAsha)
    return scheduler


def decide(scheduler: GuardedAsha, name: str, epoch: int, value: float, outcome: str = "") -> str:
    return scheduler.on_trial_result(NOBODY, trial(name), {"epoch": epoch, "value": value, "outcome": outcome})


def test_a_worse_trial_stops_at_its_rung_and_a_better_one_goes_on() -> None:
    scheduler = asha(study())
    for name in "abc":
        scheduler.on_trial_add(NOBODY, trial(name))
    assert decide(scheduler, "a", 2, 0.5) == "CONTINUE"
    assert decide(scheduler, "b", 2, 0.9) == "STOP"
    assert decide(scheduler, "c", 2, 0.1) == "CONTINUE"


def test_a_trial_that_diverged_stops_and_leaves_no_value_in_a_rung() -> None:
    """Ray's own comparison with NaN is never true: such a trial would run to the end."""
    scheduler = asha(study())
    for name in "ab":
        scheduler.on_trial_add(NOBODY, trial(name))
    assert decide(scheduler, "a", 2, 0.0, outcome="diverged") == "STOP"
    assert decide(scheduler, "b", 2, 0.9) == "CONTINUE"


def test_rungs_are_what_they_were_after_a_restart() -> None:
    """Tune 2.60 drops the scheduler's state; here the study's reports are played into a new one."""
    before = study()
    for value in (0.3, 0.6):
        number = before.ask().number  # type: ignore[union-attr]
        before.report(number, 1, value)
        before.report(number, 2, value)
        before.end(number, "stopped")
    unfinished = before.ask()
    assert unfinished is not None
    before.report(unfinished.number, 2, 0.01)  # will be reported again: must not count twice
    scheduler = asha(before)
    scheduler.on_trial_add(NOBODY, trial("new"))
    assert decide(scheduler, "new", 2, 0.55) == "STOP"
    scheduler.on_trial_add(NOBODY, trial("good"))
    assert decide(scheduler, "good", 2, 0.25) == "CONTINUE"
