"""Proposals, outcomes and restarts of a study, without Ray."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution

from trainers.search.journal import Journal, Trial, TrialState, read_journal
from trainers.search.quasi_random import quasi_random
from trainers.search.study import Study, StudySettings

SPACE = {"lr": FloatDistribution(1e-5, 1e-1, log=True), "batch": CategoricalDistribution([16, 32, 64])}
START = (("current", {"lr": 3e-3, "batch": 128}),)


def study_at(path: Path | None = None, *, seed: int = 7, rungs: tuple[int, ...] = (2, 6)) -> Study:
    return Study(StudySettings(SPACE, "min", seed, rungs, START), Journal(path))


def loss(trial: Trial, epoch: int) -> float:
    return (math.log10(trial.values["lr"]) + 2.5) ** 2 + 1.0 / epoch


def run(study: Study, count: int, *, last: int = 6) -> None:
    for _ in range(count):
        trial = study.ask()
        assert trial is not None
        for epoch in range(1, last + 1):
            study.report(trial.number, epoch, loss(trial, epoch))
        study.end(trial.number, "done" if last == 6 else "stopped")


def test_the_configuration_as_written_is_trial_0() -> None:
    trial = study_at().ask()
    assert trial is not None
    assert (trial.number, trial.source, trial.values) == (0, "current", {"lr": 3e-3, "batch": 128})


def test_proposals_are_a_function_of_seed_number_and_what_was_told() -> None:
    one, two, other = study_at(), study_at(), study_at(seed=8)
    for study in (one, two, other):
        run(study, 12)
    assert [t.values for t in one.trials] == [t.values for t in two.trials]
    assert [t.values for t in one.trials[1:]] != [t.values for t in other.trials[1:]]


def test_a_model_proposes_from_the_highest_rung_with_enough_points_and_never_from_the_first() -> None:
    study = study_at(rungs=(1, 2, 6))
    run(study, 9, last=1)
    assert study.ask().source == "quasi-random"  # type: ignore[union-attr]
    run(study, 9, last=2)
    assert study.ask().source == "tpe@2"  # type: ignore[union-attr]
    run(study, 5)  # five whole trials
    assert study.ask().source == "tpe@6"  # type: ignore[union-attr]


def test_a_model_finds_the_good_region() -> None:
    study = study_at()
    run(study, 30)
    late = [abs(math.log10(trial.values["lr"]) + 2.5) for trial in study.trials[20:]]
    early = [abs(math.log10(trial.values["lr"]) + 2.5) for trial in study.trials[1:7]]
    assert sorted(late)[5] < sorted(early)[3]


def count_bad(state: TrialState, seed: int) -> int:
    """Trials of 40 in the half of the space that fails, the best loss lying at its edge."""
    study = study_at(rungs=(1,), seed=seed)
    bad = 0
    for _ in range(40):
        trial = study.ask()
        assert trial is not None
        if trial.values["lr"] > 1e-3:
            bad += 1
            study.end(trial.number, state)
        else:
            study.report(trial.number, 1, loss(trial, 1))
            study.end(trial.number, "done")
    return bad


@pytest.mark.parametrize("state", ["oom", "diverged"])
def test_a_region_that_diverges_or_runs_out_of_memory_is_avoided(state: TrialState) -> None:
    """Told FAIL, as Ray's own searcher tells it, the region is proposed far more often (benchmarks/search)."""
    seeds = range(4)
    assert sum(count_bad(state, seed) for seed in seeds) < 0.75 * sum(count_bad("failed", seed) for seed in seeds)


def test_a_value_that_is_not_finite_is_refused() -> None:
    study = study_at()
    study.ask()
    with pytest.raises(ValueError, match="diverged"):
        study.report(0, 1, math.nan)


def test_a_trial_has_one_final_state_and_one_report_an_epoch() -> None:
    study = study_at()
    study.ask()
    study.report(0, 1, 0.5)
    study.report(0, 1, 0.1)
    study.end(0, "done")
    study.end(0, "failed")
    study.report(0, 2, 0.0)
    assert (study.trials[0].state, study.trials[0].reports) == ("done", {1: 0.5})


def test_no_configuration_is_proposed_twice_and_a_small_space_is_exhausted() -> None:
    space = {"batch": CategoricalDistribution([16, 32, 64])}
    study = Study(StudySettings(space, "min", 7, (1,), (("current", {"batch": 32}),)), Journal(None))
    seen = []
    while (trial := study.ask()) is not None:
        seen.append(trial.values["batch"])
        study.report(trial.number, 1, 1.0 / trial.values["batch"])
        study.end(trial.number, "done")
    assert sorted(seen) == [16, 32, 64]


def test_every_configuration_of_a_small_space_is_tried_once() -> None:
    space = {"a": CategoricalDistribution(list(range(8))), "b": IntDistribution(1, 6)}
    study = Study(StudySettings(space, "min", 7, (1,)), Journal(None))
    seen = set()
    while (trial := study.ask()) is not None:
        seen.add((trial.values["a"], trial.values["b"]))
        study.report(trial.number, 1, float(trial.values["a"]))
        study.end(trial.number, "done")
    assert len(seen) == len(study.trials) == 48


@pytest.mark.parametrize("seed", range(5))
def test_the_first_points_leave_no_choice_untried(seed: int) -> None:
    study = study_at(seed=seed)
    batches = [study.ask().values["batch"] for _ in range(7)][1:]  # type: ignore[union-attr]
    assert set(batches) == {16, 32, 64}


def test_quasi_random_values_reach_both_ends_of_an_integer_range_and_stay_inside() -> None:
    space = {"n": IntDistribution(1, 4), "r": FloatDistribution(1e-4, 1e-1, log=True)}
    points = [quasi_random(space, 7, index) for index in range(64)]
    assert {point["n"] for point in points} == {1, 2, 3, 4}
    assert all(1e-4 <= point["r"] <= 1e-1 for point in points)
    assert sum(point["r"] < 10**-2.5 for point in points) == 32  # half of them in the lower half of the logarithm


def test_the_winner_is_among_whole_trials() -> None:
    study = study_at()
    for value, state in ((0.5, "done"), (0.1, "stopped"), (0.3, "done"), (0.01, "diverged")):
        trial = study.ask()
        assert trial is not None
        study.report(trial.number, 2, value)
        study.end(trial.number, state)  # type: ignore[arg-type]
    best = study.best()
    assert best is not None
    assert best.number == 2


def test_the_value_of_a_trial_is_that_of_its_best_epoch() -> None:
    study = study_at()
    study.ask()
    for epoch, value in ((1, 0.9), (2, 0.2), (3, 0.4)):
        study.report(0, epoch, value)
    assert (study.best_value(study.trials[0]), study.best_epoch(study.trials[0])) == (0.2, 2)


def test_a_study_rebuilt_from_its_journal_proposes_what_the_old_one_would(tmp_path: Path) -> None:
    path = tmp_path / "journal.jsonl"
    old = study_at(path)
    run(old, 11)
    new = study_at(tmp_path / "other.jsonl")
    new.replay(read_journal(path))
    assert [trial.values for trial in new.trials] == [trial.values for trial in old.trials]
    assert new.ask().values == old.ask().values  # type: ignore[union-attr]


def test_an_interrupted_trial_is_asked_for_again_and_ended_ones_are_not(tmp_path: Path) -> None:
    path = tmp_path / "journal.jsonl"
    old = study_at(path)
    run(old, 2)
    cut = old.ask()
    assert cut is not None
    old.report(cut.number, 1, 0.7)
    new = study_at(path)
    new.replay(read_journal(path))
    again = new.ask()
    assert again is not None
    assert (again.number, again.values, again.reports) == (cut.number, cut.values, {})
    following = new.ask()
    assert following is not None
    assert following.number == 3


def test_a_torn_last_line_of_the_journal_is_left_out(tmp_path: Path) -> None:
    path = tmp_path / "journal.jsonl"
    run(study_at(path), 2)
    whole = read_journal(path)
    with path.open("a", encoding="utf-8") as file:
        file.write('{"event": "asked", "tri')
    assert read_journal(path) == whole
