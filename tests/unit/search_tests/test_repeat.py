"""Finalists under other seeds: what is on record, and which of them wins."""

from __future__ import annotations

from pathlib import Path

import pytest

from trainers.search.journal import Trial
from trainers.search.repeat import Repeat, plan_repeats, rank_finalists


def trial(number: int, value: float) -> Trial:
    return Trial(number, {"x": number}, "random", reports={1: value + 0.5, 2: value}, state="done")


def test_the_best_mean_over_seeds_wins_not_the_luckiest_value() -> None:
    lucky, steady = trial(0, 0.10), trial(1, 0.12)
    repeats = [Repeat(lucky, 8, {2: 0.30}, "done"), Repeat(lucky, 9, {2: 0.26}, "done")]
    repeats += [Repeat(steady, 8, {2: 0.13}, "done"), Repeat(steady, 9, {1: 0.2}, "failed")]
    first, second = rank_finalists([lucky, steady], repeats, "min")
    assert first.trial is steady
    assert first.values == (0.12, 0.13)
    assert second.mean == pytest.approx(0.22)


@pytest.mark.parametrize("end", ["diverged", "oom"])
def test_a_finalist_that_diverges_under_other_seeds_does_not_win_by_those_it_survived(end: str) -> None:
    lucky, steady = trial(0, 0.10), trial(1, 0.12)
    repeats = [Repeat(lucky, seed, {1: 0.2}, end) for seed in (8, 9)]
    repeats += [Repeat(steady, seed, {2: 0.13}, "done") for seed in (8, 9)]
    first, second = rank_finalists([lucky, steady], repeats, "min")
    assert first.trial is steady
    assert (first.spoiled, second.spoiled) == (0, 2)
    assert second.facts()["spoiled"] == 2


def test_the_interval_of_a_mean_is_students() -> None:
    finalist = rank_finalists([trial(0, 1.0)], [Repeat(r, 8, {1: 2.0}, "done") for r in [trial(0, 1.0)]], "min")[0]
    assert finalist.interval() == (1.0, 1.0)  # the repeat belongs to another trial object: one value only
    only = trial(0, 1.0)
    two = rank_finalists([only], [Repeat(only, 8, {1: 2.0}, "done"), Repeat(only, 9, {1: 3.0}, "done")], "min")[0]
    low, high = two.interval()
    assert two.mean == 2.0
    assert high - low == pytest.approx(2 * 4.302653 / 3**0.5, rel=1e-5)  # t(0.975, 2 degrees of freedom)


def test_repeats_on_record_are_not_run_again(tmp_path: Path) -> None:
    path = tmp_path / "repeats.jsonl"
    path.write_text('{"key": "0/8", "state": "done", "reports": {"1": 0.5}}\n{"key": "0/9", "st', encoding="utf-8")
    repeats = plan_repeats([trial(0, 0.1)], 7, 2, path)
    assert [(r.key, r.state) for r in repeats] == [("0/8", "done"), ("0/9", "running")]
    assert repeats[0].reports == {1: 0.5}
