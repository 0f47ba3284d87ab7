"""First points, cost before the start, and finalists under several seeds."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from cluster.spec.resolve import DataFacts, HostFacts, ResolvedRun, resolve
from cluster.store.run_folder import RECORD, RunFolder, StageRecord
from tests.unit.search_tests.test_space import SPACE, spec_with
from trainers.search.journal import Trial
from trainers.search.preview import preview_search
from trainers.search.repeat import Repeat, plan_repeats, rank_finalists
from trainers.search.start import starting_points

RATE, BATCH = "train.optimizer.learning_rate", "train.batch_size_global"
HOST = HostFacts(cpu_cores=2, memory_bytes=8 << 30)
DATA = DataFacts(task="classification", layout="array", num_rows=999, num_rows_train=900, source_digest="x")
WRITTEN = {RATE: 3e-3, BATCH: 64}


def resolved_with(**search: Any) -> ResolvedRun:
    return resolve(spec_with(SPACE, **search), name="x", host=HOST, data=DATA)


def points(resolved: ResolvedRun, run: RunFolder | None = None) -> list[tuple[str, dict[str, Any]]]:
    assert resolved.spec.search is not None
    return list(starting_points(resolved, resolved.spec.search, run))


def finished_run(folder: Path, name: str, best: dict[str, Any], resolved: ResolvedRun) -> RunFolder:
    run = RunFolder(folder / name)
    run.stage("search").mkdir(parents=True)
    (run.path / "spec.yaml").write_text("version: 1", encoding="utf-8")
    run.write_resolved(resolved)
    record = StageRecord(stage="search", inputs_digest="x", facts={"best": best}, started_unix_s=1, duration_s=1)
    (run.stage("search") / RECORD).write_text(record.model_dump_json(), encoding="utf-8")
    return run


def test_the_written_configuration_then_the_users_points() -> None:
    found = points(resolved_with(start=[{RATE: 0.01}, {BATCH: 32, RATE: 0.02}, {}]))
    assert found == [("current", WRITTEN), ("start", {RATE: 0.01, BATCH: 64}), ("start", {RATE: 0.02, BATCH: 32})]


def test_no_more_points_than_trials() -> None:
    assert len(points(resolved_with(start=[{RATE: 0.01}, {RATE: 0.02}], trials=2))) == 2


def test_winners_of_other_runs_are_tried_when_asked_and_alike(tmp_path: Path) -> None:
    resolved = resolved_with(transfer=3)
    good = {RATE: 0.01, BATCH: 32}
    finished_run(tmp_path, "good", good, resolved)
    finished_run(tmp_path, "outside", {RATE: 0.5, BATCH: 32}, resolved)  # above the space's end
    finished_run(tmp_path, "other-paths", {RATE: 0.01}, resolved)
    other = resolved.model_copy(update={"spec": resolved.spec.model_copy(update={"model": resolved.spec.model})})
    sgd = other.with_values({"train.optimizer.name": "sgd"})
    finished_run(tmp_path, "other-optimizer", {RATE: 0.02, BATCH: 32}, sgd)
    here = RunFolder(tmp_path / "here")
    assert points(resolved, here) == [("current", WRITTEN), ("transfer", good)]
    assert points(resolved_with(), here) == [("current", WRITTEN)]


def test_the_cost_is_known_before_the_start() -> None:
    resolved = resolved_with(trials=9, epochs=6, grace_epochs=2, reduction_factor=3, repeats=2)
    assert resolved.spec.search is not None
    cost = preview_search(resolved, resolved.spec.search, HOST)
    assert (cost.trials, cost.concurrency) == (9, 2)
    assert cost.epochs_max == 9 * 6 + 2 * 2 * 6
    assert cost.epochs_min == 6 + 8 * 2 + 24
    assert cost.epochs_expected == 9 * 2 + 3 * 4 + 24
    assert cost.samples_max == cost.epochs_max * 900


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
