"""The batch-size probe: what it finds, and that it leaves nothing behind."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from cluster.errors import MemoryShortError
from cluster.telemetry.events import ListSink, Message
from tests.unit.loop_tests.rig import HERE, copy_of_state, is_same_state, request_for, run_ranks, start, write_data
from trainers.loop import fit
from trainers.loop.request import SizingRequest
from trainers.loop.tuner.batch_size_finder import HEAD_ROOM, SizeTrial, probe_micro_batch, search_size, size_micro_batch
from trainers.loop.tuner.memory_estimate import estimate_memory


def sizes(limit: int, memory: int, speed: Any = lambda rows: float(rows)) -> tuple[int, list[int]]:
    report = search_size(lambda rows: SizeTrial(rows, rows <= memory, speed(rows)), limit)
    return report.rows, [trial.rows for trial in report.trials]


def test_probe_doubles_then_bisects_to_within_five_percent() -> None:
    found, tried = sizes(limit=1000, memory=100)
    assert tried[:7] == [2, 4, 8, 16, 32, 64, 128], "one row is not a batch for batch norm"
    assert 95 <= found <= 100
    assert sizes(limit=1000, memory=1) == (1, [2, 1]), "but where only one fits it is found"


def test_probe_stops_at_the_workers_share() -> None:
    assert sizes(limit=48, memory=10_000) == (48, [2, 4, 8, 16, 32, 48])


def test_probe_takes_the_knee_not_the_largest() -> None:
    found, _ = sizes(limit=1024, memory=10_000, speed=lambda rows: min(rows, 64.0))
    assert found == 64


def test_probe_of_a_model_that_does_not_fit_at_all_says_so() -> None:
    with pytest.raises(MemoryShortError, match="one row"):
        sizes(limit=8, memory=0)


def test_probe_finds_the_out_of_memory_limit_and_leaves_the_model_as_it_was(tmp_path: Path) -> None:
    prepared = write_data(tmp_path / "data", 64, dtype="FP32")
    request = request_for(prepared, batch=64, micro=8, factory=f"{HERE}:build_short", arguments={"limit": 20})
    job, state = start(request)
    before = copy_of_state(job, state)
    report = probe_micro_batch(job, state, cache=tmp_path / "cache")
    assert max(trial.rows for trial in report.trials if trial.fits) == 20
    assert is_same_state(before, copy_of_state(job, state))
    assert state.micro_size == 8
    state.model.limit = 1  # type: ignore[assignment]
    assert probe_micro_batch(job, state, cache=tmp_path / "cache") == report, "the second time it is read"


def test_probe_on_a_cpu_keeps_to_the_stated_budget(tmp_path: Path) -> None:
    prepared = write_data(tmp_path / "data", 256, dtype="FP32")
    job, state = start(request_for(prepared, batch=256, micro=8, arguments={"double": False}))
    budget = int(estimate_memory(state.model, job.inputs, 64, job.request.train).total / HEAD_ROOM) + 1
    report = probe_micro_batch(job, state, budget_bytes=budget)
    assert 62 <= max(trial.rows for trial in report.trials if trial.fits) <= 64


def test_the_reason_names_what_binds_and_small_budgets_keep_their_figures(tmp_path: Path) -> None:
    prepared = write_data(tmp_path / "data", 64, dtype="FP32")
    job, state = start(request_for(prepared, batch=64, micro=8, arguments={"double": False}))
    reasons = [
        probe_micro_batch(job, state, limit=limit, budget_bytes=budget, timed=False).reason
        for limit, budget in ((16, None), (256, None), (256, 40 << 20))
    ]
    assert "16 rows a worker fit (bound by the most that a CPU gains from, 16)" in reasons[0]
    assert "64 rows a worker fit (bound by its share of the global batch)" in reasons[1]
    assert "in 40 MiB less 10% head-room" in reasons[2]


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


def _tiny_request(prepared: Path, tmp_path: Path, workers: int = 1, **more: Any) -> Any:
    request = request_for(prepared, batch=64, micro=8, workers=workers, arguments={"double": False}, **more)
    return replace(request, sizing=SizingRequest(None, tmp_path / "sizing"))


def test_auto_is_probed_when_a_run_starts_and_kept_when_it_goes_on(tmp_path: Path) -> None:
    """The run is byte for byte the one whose spec says the size that was found."""
    prepared = write_data(tmp_path / "data", 64, dtype="FP32")
    sink = ListSink()
    request = _tiny_request(prepared, tmp_path, checkpoints=tmp_path / "ck", epochs=1)
    found = fit(request, sink=sink, device=torch.device("cpu"))
    assert found.micro_batch == 64, "the rule's 8 was a plan"
    assert "64 rows a worker fit" in found.micro_batch_reason
    assert any("micro-batches of 64 rows" in event.text for event in sink.events if isinstance(event, Message))
    said = replace(request, sizing=None, checkpoints=None, batch=request.batch.for_micro_batch(64))
    plain = fit(said, sink=ListSink(), device=torch.device("cpu"))
    assert all(torch.equal(found.weights[name], plain.weights[name]) for name in plain.weights)
    longer = replace(request, train=request.train.model_copy(update={"epochs": 2}))
    again = ListSink()
    resumed = fit(longer, sink=again, device=torch.device("cpu"))
    assert (resumed.micro_batch, resumed.micro_batch_reason) == (found.micro_batch, found.micro_batch_reason)
    assert not any("micro-batches of" in event.text for event in again.events if isinstance(event, Message))


@pytest.mark.parametrize("change", [{"precision": "bf16"}, {"ema": {"decay": 0.9}}, {"channels_last": True}], ids=str)
def test_what_was_found_is_remembered_for_the_same_configuration_only(tmp_path: Path, change: dict[str, Any]) -> None:
    prepared = write_data(tmp_path / "data", 64, dtype="FP32")
    cache = tmp_path / "sizing"
    for more in ({}, {}, change):
        job, state = start(_tiny_request(prepared, tmp_path, **more))
        probe_micro_batch(job, state, cache=cache, timed=False)
    assert len(list(cache.iterdir())) == 2


def _auto_on_rank(rank: int, prepared: str, cache: str) -> tuple[int, str]:
    request = request_for(
        Path(prepared),
        batch=64,
        micro=8,
        workers=2,
        factory=f"{HERE}:build_short",
        arguments={"limit": 9, "rank": 1},
        epochs=1,
    )
    request = replace(request, sizing=SizingRequest(None, Path(cache)))
    result = fit(request, sink=ListSink(), device=torch.device("cpu"))
    return result.micro_batch, result.micro_batch_reason


def test_auto_on_two_workers_is_what_the_smaller_one_holds(tmp_path: Path) -> None:
    prepared = str(write_data(tmp_path / "data", 64, dtype="FP32"))
    found = run_ranks(2, _auto_on_rank, tmp_path / "ranks", prepared, str(tmp_path / "cache"))
    assert found[0] == found[1]
    assert found[0][0] == 9
    assert "bound by memory" in found[0][1]


def test_a_knee_is_not_looked_for_on_a_cpu_so_that_the_same_spec_gives_the_same_bytes(tmp_path: Path) -> None:
    prepared = write_data(tmp_path / "data", 64, dtype="FP32")
    job, state = start(_tiny_request(prepared, tmp_path))
    report = size_micro_batch(job, state)
    assert {trial.rows_per_s for trial in report.trials} == {0.0}
    assert report.rows == 64
