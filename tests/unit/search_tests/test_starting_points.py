"""First points of a search, and its cost before the start."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from cluster.spec.resolve import DataFacts, HostFacts, ResolvedRun, resolve
from cluster.store.run_folder import RECORD, RunFolder, StageRecord
from tests.unit.search_tests.test_space import SPACE, spec_with
from trainers.search.preview import preview_search
from trainers.search.starting_points import starting_points

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
