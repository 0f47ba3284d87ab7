"""Training on a real GPU: no wait for the device in a steady update, the speed of a hand-written loop, the probe.

    pytest -m gpu tests/gpu/training_tests

Not run so far: no machine of this project's tests has had a GPU. The same code runs on a CPU in
tests/unit/benchmark_tests/test_gpu_dry.py, and the order of reads is proved by counting in
tests/unit/loop_tests/test_steady_updates.py.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from benchmarks.training_gpu.loops import Case, by_hand, ours, request_of, write_rows
from cluster.errors import MemoryShortError
from cluster.telemetry.events import ListSink
from trainers.loop.loop import remaining_windows
from trainers.loop.setup import set_up
from trainers.loop.step import finish_update, start_update, update
from trainers.loop.tuner.batch_size_finder import _Room, _try, probe_micro_batch

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs an NVIDIA GPU"),
    pytest.mark.timeout(1200),
]
GPU = torch.device("cuda", 0)
STEADY_UPDATES = 50


@pytest.mark.parametrize("network", ["resnet50", "bert_base"])
@pytest.mark.parametrize("precision", ["fp32", "bf16", "fp16"])
def test_fifty_steady_updates_wait_for_nothing(tmp_path: Path, network: str, precision: str) -> None:
    """torch raises at the first call that synchronizes."""
    case = Case(network, precision, 8)
    job, state = set_up(request_of(case, write_rows(tmp_path, case, 8 * (STEADY_UPDATES + 3))), ListSink(), GPU)
    assert state.deferred
    windows = remaining_windows(job, state)
    update(job, state, next(windows))
    torch.cuda.set_sync_debug_mode("error")
    try:
        for _ in range(STEADY_UPDATES):
            start_update(job, state, next(windows))
    finally:
        torch.cuda.set_sync_debug_mode("default")
    finish_update(job, state)
    assert state.cursor.update + state.cursor.skipped == STEADY_UPDATES + 1


@pytest.mark.parametrize(
    "case",
    [
        Case("resnet50", "bf16", 256),
        Case("resnet50", "fp16", 256),
        Case("bert_base", "bf16", 128),
        Case("bert_base", "fp16", 128),
    ],
    ids=lambda case: f"{case.network}-{case.precision}",
)
def test_as_fast_as_a_hand_written_loop(tmp_path: Path, case: Case) -> None:
    prepared = write_rows(tmp_path, case, 4 * case.batch)
    ratios = []
    for pair in range(3):
        sides = (ours, by_hand) if pair % 2 == 0 else (by_hand, ours)
        speed = {side: side(case, prepared, GPU, 40, 10) for side in sides}
        ratios.append(speed[ours] / speed[by_hand])
    assert sorted(ratios)[1] >= 0.99, ratios


def test_auto_batch_is_within_five_percent_of_the_true_limit(tmp_path: Path) -> None:
    """The true limit: the largest size that passes the same trial, found by trying each size upwards from there."""
    case = Case("resnet50", "bf16", 16)
    prepared = write_rows(tmp_path, case, 64)
    request = request_of(case, prepared)
    job, state = set_up(
        replace(request, batch=request.batch.model_copy(update={"batch_size_global": 1 << 16})), ListSink(), GPU
    )
    before = {name: tensor.clone() for name, tensor in state.model.state_dict().items()}
    report = probe_micro_batch(job, state)
    found = max(trial.rows for trial in report.trials if trial.fits)
    assert all(torch.equal(tensor, before[name]) for name, tensor in state.model.state_dict().items())
    assert state.quick_step.ready
    room, limit = _Room(job, None), found
    while _try(job, state, limit + max(1, found // 100), room, timed=False).fits:
        limit += max(1, found // 100)
    assert found >= 0.95 * limit
    assert report.rows <= found


def test_out_of_memory_halves_the_micro_batch_and_goes_on(tmp_path: Path) -> None:
    """The allocator may have 4 GiB: 512 rows need several times that, an eighth of them fits."""
    case = Case("resnet50", "bf16", 512)
    job, state = set_up(request_of(case, write_rows(tmp_path, case, 512)), ListSink(), GPU)
    torch.cuda.empty_cache()
    torch.cuda.set_per_process_memory_fraction(min(1.0, (4 << 30) / torch.cuda.mem_get_info(GPU)[1]), GPU)
    try:
        report = update(job, state, next(remaining_windows(job, state)))
    except MemoryShortError:
        pytest.fail("an eighth of it fits")
    finally:
        torch.cuda.set_per_process_memory_fraction(1.0, GPU)
    assert report.made
    assert state.micro_size < 512


def test_compiled_and_eager_train_the_same(tmp_path: Path) -> None:
    case = Case("resnet50", "fp32", 8, scale=2)
    prepared = write_rows(tmp_path, case, 32)
    ends = []
    for compiled in (False, True):
        request = request_of(case, prepared)
        request = replace(request, train=request.train.model_copy(update={"compile": compiled}))
        job, state = set_up(request, ListSink(), GPU)
        windows = remaining_windows(job, state)
        ends.append([update(job, state, next(windows)).loss_sum for _ in range(4)])
    assert ends[0] == pytest.approx(ends[1], rel=1e-3)
