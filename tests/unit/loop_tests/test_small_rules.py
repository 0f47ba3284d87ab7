"""Rules that a change of one line would break without a word: each test here was missing for a mutation of the code."""

from __future__ import annotations

import random
from dataclasses import asdict
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.distributed as dist
from torch import nn
from torch.nn import functional as F

from cluster.spec.train import AugmentSpec
from cluster.telemetry.events import EpochFinished, ListSink
from tests.unit.loop_tests.rig import CLASSES, FEATURES, HERE, request_for, run_ranks, start, write_data
from trainers.loop import fit
from trainers.loop.checkpointing import snapshot
from trainers.loop.checkpointing.folder import CheckpointFolder, Snapshot
from trainers.loop.data.augment import Augmenter, WindowChange
from trainers.loop.data.loader import SplitReader
from trainers.loop.data.sampler import Window, epoch_order, window_of
from trainers.loop.evaluate import evaluate_split
from trainers.loop.parts import rng
from trainers.loop.parts.losses import Objective
from trainers.loop.setup import set_up
from trainers.loop.state import Best, Cursor
from trainers.loop.step import _gradient_of_window, advance, learning_rate_now, settle, update

CPU = torch.device("cpu")
THIS = "tests.unit.loop_tests.test_small_rules"


def test_every_fact_of_the_state_survives_a_checkpoint(tmp_path: Path) -> None:
    """Not only tensors: counters, budgets, the plateau and the best epoch are part of what a run goes on from."""
    request = request_for(
        write_data(tmp_path / "data", 16), batch=8, micro=4, schedule={"plateau": {}}, ema={"decay": 0.9}
    )
    job, state = start(request)
    state.cursor = Cursor(3, 1, 7, 2, [(2, 1), (3, 0)], 1.5, 12.0)
    state.best = Best(2, 0.25, {"validation.loss": 0.25}, {"x": torch.ones(2)}, 1)
    state.history = [EpochFinished(stage="train", epoch=1, epochs=2, update=2, metrics={"a": float("inf")}, time_s=1.0)]
    state.left_out, state.rollbacks, state.stopped_early = {(1, 0), (2, 3)}, 1, True
    state.micro_size, state.micro_reason, state.learning_rate_found = 2, "why", 0.125
    assert state.plateau is not None
    state.plateau.factor = 0.5
    folder = CheckpointFolder(tmp_path / "ck", request.train.checkpoint, request.train.best)
    folder.take_over()
    folder.write("e00003-w00000001", snapshot.take(job, state), None)
    _, fresh = start(request)
    snapshot.restore(job, fresh, folder.read("e00003-w00000001"))
    assert (fresh.cursor, fresh.history, fresh.left_out) == (state.cursor, state.history, state.left_out)
    assert (fresh.rollbacks, fresh.stopped_early, fresh.plateau) == (1, True, state.plateau)
    assert (fresh.micro_size, fresh.micro_reason, fresh.learning_rate_found) == (2, "why", 0.125)
    assert torch.equal(fresh.best.weights.pop("x"), state.best.weights.pop("x"))
    assert asdict(fresh.best) == asdict(state.best)


def test_what_is_evaluated_is_the_average_in_eval_mode_by_the_plain_loss(tmp_path: Path) -> None:
    request = request_for(
        write_data(tmp_path, 60),
        batch=8,
        micro=4,
        arguments={"dropout": 0.5, "norm": True},
        ema={"decay": 0.9},
        loss={"label_smoothing": 0.3},
    )
    job, state = start(request)
    assert state.ema is not None
    for average in state.ema.averages:
        average.mul_(1.7)
    found = evaluate_split(job, state, job.validation, "validation")["validation.loss"]
    assert state.model.training, "and training goes on as before"
    split = job.data.splits["validation"]
    with state.ema.applied(), torch.no_grad():
        outputs = state.model.eval()(torch.from_numpy(np.array(split.inputs["x"])))
    assert found == pytest.approx(float(F.cross_entropy(outputs, torch.from_numpy(np.array(split.targets)))), rel=1e-6)


def test_the_plateaus_factor_multiplies_the_schedule(tmp_path: Path) -> None:
    job, state = start(request_for(write_data(tmp_path, 16), batch=8, micro=4, schedule={"plateau": {}}))
    before = learning_rate_now(job, state)
    assert state.plateau is not None
    state.plateau.factor = 0.25
    assert learning_rate_now(job, state) == pytest.approx(0.25 * before)


def test_augmentation_changes_from_epoch_to_epoch_and_not_with_the_workers() -> None:
    augmenter = Augmenter(AugmentSpec(shift_pixels=2, mixup_alpha=0.4), 7, (1, 6, 6), CLASSES)

    def draw(epoch: int, index: int, start: int, stop: int) -> tuple:
        change = augmenter.draw(Window(epoch, index, np.arange(32), start, stop))
        assert change.shifts is not None
        return change.share, change.shifts.tolist()

    assert draw(0, 0, 0, 16) == draw(0, 0, 16, 32) == draw(0, 0, 0, 32)
    assert len({str(draw(epoch, index, 0, 32)) for epoch in range(3) for index in range(3)}) == 9


def test_mixup_of_weighted_rows_is_the_weighted_sum_of_both_losses(tmp_path: Path) -> None:
    prepared = write_data(tmp_path, 24, dtype="FP32")
    job, _ = start(request_for(prepared, batch=8, micro=8))
    weights = np.random.default_rng(1).uniform(0.2, 3, 24).astype(np.float32)
    reader = SplitReader(job.data.splits["train"], CPU, weights)
    rows, share = np.arange(8), 0.3
    change = WindowChange(None, np.roll(rows, 3), share)
    mixed = Augmenter(AugmentSpec(mixup_alpha=1.0), 7, (FEATURES,), CLASSES).apply(
        reader.read(rows), change, slice(0, 8), reader
    )
    outputs = torch.randn(8, CLASSES, generator=torch.Generator().manual_seed(0))
    items = [F.cross_entropy(outputs, reader.read(some).targets, reduction="none") for some in (rows, np.roll(rows, 3))]
    each = [torch.from_numpy(weights[some]) for some in (rows, np.roll(rows, 3))]
    wanted = share * (each[0] * items[0]).sum() + (1 - share) * (each[1] * items[1]).sum()
    torch.testing.assert_close(Objective("classification").sum(mixed, outputs), wanted)
    assert float(mixed.weights.sum()) == pytest.approx(reader.weight_of(rows)), "the divisor is the window's as before"


def test_each_window_starts_from_a_cleared_gradient(tmp_path: Path) -> None:
    job, state = start(request_for(write_data(tmp_path, 16), batch=8, micro=4))
    window = window_of(epoch_order(7, 0, 16), 0, 0, 8, job.world)
    gradients = []
    for _ in range(2):
        _gradient_of_window(job, state, window, 8.0, False)
        gradients.append(state.exchange.gradient.clone())
    assert torch.equal(*gradients)


def test_a_window_without_a_valid_item_is_no_update(tmp_path: Path) -> None:
    job, state = start(request_for(write_data(tmp_path, 16, ignore_every=1), batch=8, micro=4))
    before = [parameter.detach().clone() for parameter in state.exchange.parameters]
    report = update(job, state, window_of(epoch_order(7, 0, 16), 0, 0, 8, job.world))
    assert not report.made
    assert (state.cursor.update, state.cursor.window, state.cursor.skipped, state.cursor.nonfinite) == (0, 1, 1, [])
    assert all(torch.equal(old, new) for old, new in zip(before, state.exchange.parameters, strict=True))


def test_keep_last_keeps_the_last_epoch_whatever_its_metric(tmp_path: Path) -> None:
    best = {"metric": "validation.loss", "mode": "max"}  # the first epoch is the "best"
    prepared = write_data(tmp_path, 48)
    kept = {
        keep: fit(request_for(prepared, batch=8, micro=8, epochs=4, keep=keep, best=best), sink=ListSink(), device=CPU)
        for keep in ("best", "last")
    }
    assert kept["best"].best_epoch < 4
    assert kept["last"].best_epoch == 4
    assert kept["last"].metrics == kept["last"].history[-1].metrics


def test_the_budget_counts_windows_in_a_row(tmp_path: Path) -> None:
    request = request_for(
        write_data(tmp_path, 16, dtype="FP32"),
        batch=4,
        micro=4,
        arguments={"double": False},
        epochs=3,
        faults={"nonfinite_updates": 1, "rollbacks": 0},
        objective=f"{HERE}:poisoned_losses",
        objective_arguments={"at": (1, 3, 5, 7)},
    )
    assert fit(request, sink=ListSink(), device=CPU).skipped_updates == 4


def test_past_the_budget_an_update_that_is_queued_already_is_not_made(tmp_path: Path) -> None:
    """On a device that is not waited for, the next backward is queued before the budget is known to be spent."""
    request = request_for(
        write_data(tmp_path, 16, dtype="FP32"),
        batch=4,
        micro=4,
        arguments={"double": False},
        faults={"nonfinite_updates": 0},
        objective=f"{HERE}:poisoned_losses",
        objective_arguments={"at": (0,)},
    )
    job, state = start(request)
    state.lagging = True
    order = epoch_order(7, 0, 16)
    before = [parameter.detach().clone() for parameter in state.exchange.parameters]
    assert advance(job, state, window_of(order, 0, 0, 4, job.world)) == []
    reports = advance(job, state, window_of(order, 0, 1, 4, job.world))
    assert [report.made for report in reports] == [False]
    assert settle(job, state) == []
    assert state.cursor.window == 1
    assert all(torch.equal(old, new) for old, new in zip(before, state.exchange.parameters, strict=True))


def test_workers_draw_different_numbers_and_the_same_again() -> None:
    def draws(seed: int, rank: int) -> tuple[float, float, float]:
        rng.seed_everything(seed, rank)
        return float(torch.rand(())), float(np.random.random()), random.random()

    held = rng.capture()
    first, other, again = draws(7, 0), draws(7, 1), draws(7, 0)
    rng.restore(held)
    assert first == again
    assert all(one != two for one, two in zip(first, other, strict=True))


def test_another_number_of_workers_does_not_draw_the_first_epochs_numbers_again(tmp_path: Path) -> None:
    job, state = start(request_for(write_data(tmp_path, 16), batch=8, micro=4))
    state.cursor.update = 5
    taken = snapshot.take(job, state)
    rng.seed_everything(7, 0)
    first = torch.rand(4)
    snapshot.restore(job, state, Snapshot(taken.tensors, {**taken.state, "workers": 2}))
    assert not torch.equal(torch.rand(4), first)


def build_of_rank() -> nn.Module:
    """Another model on each rank, as an unseeded factory makes it; batch norm."""
    net = nn.Sequential(nn.Linear(FEATURES, 8), nn.BatchNorm1d(8), nn.Linear(8, CLASSES)).double()
    with torch.no_grad():
        for parameter in net.parameters():
            parameter.mul_(1.0 + dist.get_rank())
    return net


def _on_two_workers(rank: int, prepared: str) -> tuple[np.ndarray, int, list[np.ndarray]]:
    request = request_for(Path(prepared), batch=8, micro=4, workers=2, epochs=3, factory=f"{THIS}:build_of_rank")
    _, state = set_up(request, ListSink(), CPU)
    before = torch.cat([parameter.detach().flatten() for parameter in state.exchange.parameters]).numpy()
    result = fit(request, sink=ListSink(), device=CPU, on_epoch=lambda event: rank == 1)
    return before, len(result.history), [tensor.numpy() for tensor in result.weights.values()]


def test_workers_start_alike_stop_alike_and_end_alike(tmp_path: Path) -> None:
    """Rank 0's weights whatever a factory made; one worker's wish to stop ends all; batch norm is averaged."""
    one, two = run_ranks(2, _on_two_workers, tmp_path / "ranks", str(write_data(tmp_path / "data", 32)), timeout_s=20.0)
    assert np.array_equal(one[0], two[0])
    assert (one[1], two[1]) == (1, 1)
    assert all(np.array_equal(left, right) for left, right in zip(one[2], two[2], strict=True))
