"""The batch-size probe and the learning-rate range test: what they find, and that they leave nothing behind."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import torch

from cluster.errors import MemoryShortError
from tests.unit.loop_tests.rig import HERE, request_for, run_ranks, start, write_data
from trainers.loop import snapshot
from trainers.loop.memory import estimate_memory
from trainers.loop.sizing import HEAD_ROOM, Trial, probe_micro_batch, range_test, search_size, steepest


def sizes(limit: int, memory: int, speed: Any = lambda rows: float(rows)) -> tuple[int, list[int]]:
    report = search_size(lambda rows: Trial(rows, rows <= memory, speed(rows)), limit)
    return report.rows, [trial.rows for trial in report.trials]


def test_probe_doubles_then_bisects_to_within_an_eighth() -> None:
    found, tried = sizes(limit=1000, memory=100)
    assert tried[:8] == [1, 2, 4, 8, 16, 32, 64, 128]
    assert 88 <= found <= 100


def test_probe_stops_at_the_workers_share() -> None:
    assert sizes(limit=48, memory=10_000) == (48, [1, 2, 4, 8, 16, 32, 48])


def test_probe_takes_the_knee_not_the_largest() -> None:
    found, _ = sizes(limit=1024, memory=10_000, speed=lambda rows: min(rows, 64.0))
    assert found == 64


def test_probe_of_a_model_that_does_not_fit_at_all_says_so() -> None:
    with pytest.raises(MemoryShortError, match="one row"):
        sizes(limit=8, memory=0)


def _fingerprint(job: Any, state: Any) -> Any:
    taken = copy.deepcopy(snapshot.take(job, state))
    return taken.tensors, taken.state


def _equal(one: Any, other: Any) -> bool:
    tensors = all(torch.equal(one[0][f][n], other[0][f][n]) for f in one[0] for n in one[0][f])
    return one[0].keys() == other[0].keys() and tensors and one[1] == other[1]


def test_probe_finds_the_out_of_memory_limit_and_leaves_the_model_as_it_was(tmp_path: Path) -> None:
    prepared = write_data(tmp_path / "data", 64, dtype="FP32")
    request = request_for(prepared, batch=64, micro=8, factory=f"{HERE}:build_short", arguments={"limit": 20})
    job, state = start(request)
    before = _fingerprint(job, state)
    report = probe_micro_batch(job, state, cache=tmp_path / "cache")
    assert max(trial.rows for trial in report.trials if trial.fits) in (18, 19, 20)
    assert _equal(before, _fingerprint(job, state))
    assert state.micro_size == 8
    state.model.limit = 1  # type: ignore[assignment]
    assert probe_micro_batch(job, state, cache=tmp_path / "cache") == report, "the second time it is read"


def test_probe_on_a_cpu_keeps_to_the_stated_budget(tmp_path: Path) -> None:
    prepared = write_data(tmp_path / "data", 256, dtype="FP32")
    job, state = start(request_for(prepared, batch=256, micro=8, arguments={"double": False}))
    budget = int(estimate_memory(state.model, job.inputs, 64, job.request.train).total / HEAD_ROOM) + 1
    report = probe_micro_batch(job, state, budget_bytes=budget)
    assert 56 <= max(trial.rows for trial in report.trials if trial.fits) <= 64


def _probe_on_rank(rank: int, prepared: str) -> list[tuple[int, bool]]:
    request = request_for(
        Path(prepared),
        batch=64,
        micro=8,
        workers=2,
        factory=f"{HERE}:build_short",
        arguments={"limit": 9, "rank": 1},
    )
    job, state = start(request)
    report = probe_micro_batch(job, state)
    return [(trial.rows, trial.fits) for trial in report.trials]


def test_the_smallest_rank_decides(tmp_path: Path) -> None:
    """Only rank 1 is short of memory; both must try the same sizes and stop at rank 1's limit."""
    prepared = str(write_data(tmp_path / "data", 64, dtype="FP32"))
    first, second = run_ranks(2, _probe_on_rank, tmp_path / "ranks", prepared)
    assert first == second
    assert max(rows for rows, fits in first if fits) == 9


def test_range_test_suggests_a_rate_that_trains_and_leaves_the_model_as_it_was(tmp_path: Path) -> None:
    prepared = write_data(tmp_path / "data", 96, dtype="FP32")
    job, state = start(request_for(prepared, batch=16, micro=16, arguments={"double": False}))
    before = _fingerprint(job, state)
    report = range_test(job, state, low=1e-5, high=10.0, windows=60)
    assert _equal(before, _fingerprint(job, state))
    assert 1e-3 < report.suggestion < 1.0
    assert list(report.learning_rates) == sorted(report.learning_rates)


def test_steepest_point_of_a_curve() -> None:
    assert steepest([1.0, 10.0, 100.0, 1000.0, 10000.0], [1.0, 1.0, 0.5, 0.1, 0.1]) == 100.0
