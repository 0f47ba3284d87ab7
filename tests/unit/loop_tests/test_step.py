"""One update is the mean over the valid items of the whole global batch: "One update" of docs/training_rules.py."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from tests.unit.loop_tests.rig import HERE, request_for, run_ranks, start, write_data
from trainers.loop.data.sampler import Window, epoch_order, window_of
from trainers.loop.parts.losses import IGNORE_INDEX
from trainers.loop.state import Job, State
from trainers.loop.step import compute_gradient, finish_update, learning_rate_now, start_update, update

ROWS = 37


def reference_gradient(job: Job, rows: np.ndarray, arguments: dict | None = None) -> torch.Tensor:
    """Gradient of the mean loss of all valid rows in one batch, by plain torch, in the model's order."""
    from trainers.loop.setup import build_module

    model = build_module(job.request, job.data)
    split = job.data.splits["train"]
    inputs, targets = torch.from_numpy(split.inputs["x"][rows]), torch.from_numpy(split.targets[rows])
    loss = F.cross_entropy(model(inputs), targets, reduction="sum", ignore_index=IGNORE_INDEX)
    (loss / (targets != IGNORE_INDEX).sum()).backward()
    return torch.cat([parameter.grad.flatten() for parameter in model.parameters()])


def gradient_of(state: State) -> torch.Tensor:
    return torch.cat([parameter.grad.flatten() for parameter in state.exchange.parameters]).clone()


def whole_window(rows: int, start: int = 0, stop: int | None = None) -> Window:
    return Window(0, 0, np.arange(rows), start, rows if stop is None else stop)


def test_partial_window_and_ignored_targets_match_full_batch(tmp_path: Path) -> None:
    request = request_for(write_data(tmp_path, ROWS, ignore_every=5), batch=ROWS, micro=8)
    job, state = start(request)
    window = whole_window(ROWS)
    assert [s.stop - s.start for s in window.micro_slices(8)] == [7, 7, 8, 7, 8]
    weight = job.train.weight_of(window.rows)
    assert weight == ROWS - len(range(0, ROWS, 5))
    compute_gradient(job, state, window, weight, False)
    reference = reference_gradient(job, window.rows)
    torch.testing.assert_close(gradient_of(state), reference, rtol=1e-12, atol=1e-14)


def test_mean_per_micro_batch_over_constant_k_is_not_the_mean(tmp_path: Path) -> None:
    """The common shortcut on the same data: it must fail, or the test above proves nothing."""
    job, _ = start(request_for(write_data(tmp_path, ROWS, ignore_every=5), batch=ROWS, micro=8))
    from trainers.loop.setup import build_module

    model, split, constant_k = build_module(job.request, job.data), job.data.splits["train"], 8
    for where in whole_window(ROWS).micro_slices(8):
        inputs, targets = (
            torch.from_numpy(split.inputs["x"][where].copy()),
            torch.from_numpy(split.targets[where].copy()),
        )
        (F.cross_entropy(model(inputs), targets, ignore_index=IGNORE_INDEX) / constant_k).backward()
    shortcut = torch.cat([parameter.grad.flatten() for parameter in model.parameters()])
    reference = reference_gradient(job, np.arange(ROWS))
    assert 0.5 < float(shortcut.norm() / reference.norm()) < 0.75
    assert not torch.allclose(shortcut * constant_k / 5, reference, rtol=1e-3, atol=0)


@pytest.mark.parametrize("micro", [1, 3, 16, 37, 100])
def test_micro_batch_size_does_not_occur_in_the_formula(tmp_path: Path, micro: int) -> None:
    request = request_for(write_data(tmp_path, ROWS, ignore_every=5), batch=ROWS, micro=micro)
    job, state = start(request)
    window = whole_window(ROWS)
    compute_gradient(job, state, window, job.train.weight_of(window.rows), False)
    torch.testing.assert_close(gradient_of(state), reference_gradient(job, window.rows), rtol=1e-10, atol=1e-14)


def test_sample_weights_are_part_of_the_mean(tmp_path: Path) -> None:
    prepared = write_data(tmp_path, ROWS)
    weights = np.random.default_rng(1).uniform(0.2, 3.0, ROWS).astype(np.float32)
    np.save(prepared / "train" / "weights.npy", weights)
    job, state = start(request_for(prepared, batch=ROWS, micro=8))
    window = whole_window(ROWS)
    compute_gradient(job, state, window, job.train.weight_of(window.rows), False)
    from trainers.loop.setup import build_module

    model, split = build_module(job.request, job.data), job.data.splits["train"]
    inputs, targets = torch.from_numpy(np.array(split.inputs["x"])), torch.from_numpy(np.array(split.targets))
    losses = F.cross_entropy(model(inputs), targets, reduction="none")
    w = torch.from_numpy(weights).double()
    ((losses * w).sum() / w.sum()).backward()
    reference = torch.cat([parameter.grad.flatten() for parameter in model.parameters()])
    torch.testing.assert_close(gradient_of(state), reference, rtol=1e-6, atol=1e-9)


def _uneven(rank: int, prepared: str, bounds: list, micro: list, bucket_mib: float) -> tuple:
    request = request_for(
        Path(prepared), batch=ROWS, micro=micro[rank], workers=2, exchange={"bucket_mib": bucket_mib, "wire": "same"}
    )
    job, state = start(request)
    rows = bounds[-1]
    window = whole_window(rows, bounds[rank], bounds[rank + 1])
    before = state.exchange.num_collectives
    scalars = compute_gradient(job, state, window, job.train.weight_of(window.rows), False)
    reference = reference_gradient(job, window.rows)
    return (
        gradient_of(state).numpy(),
        reference.numpy(),
        state.exchange.num_collectives - before,
        len(state.exchange._buckets),
        float(scalars.loss_sum),
    )


@pytest.mark.parametrize(
    ("bounds", "micro"),
    [([0, 8, 16], [4, 4]), ([0, 11, 17], [4, 4]), ([0, 5, 9], [5, 1]), ([0, 7, 7], [3, 3])],
    ids=["even", "3-and-2-micro-batches", "1-and-4-micro-batches", "one-without-rows"],
)
@pytest.mark.parametrize("bucket_mib", [25.0, 0.0005], ids=["one-bucket", "many-buckets"])
def test_ddp_no_sync_uneven_ranks_match_full_batch(
    tmp_path: Path, bounds: list, micro: list, bucket_mib: float
) -> None:
    prepared = write_data(tmp_path / "data", ROWS, ignore_every=5)
    results = run_ranks(2, _uneven, tmp_path / "ranks", str(prepared), bounds, micro, bucket_mib)
    for gradient, reference, collectives, buckets, loss in results:
        np.testing.assert_allclose(gradient, reference, rtol=1e-10, atol=1e-13)
        assert collectives == buckets, "one all-reduce per bucket and window, whatever the number of micro-batches"
        assert loss == results[0][4]
    assert (results[0][3] > 1) == (bucket_mib < 1)
    assert np.array_equal(results[0][0], results[1][0]), "ranks end bit-identical"


def test_the_plateaus_factor_multiplies_the_schedule(tmp_path: Path) -> None:
    job, state = start(request_for(write_data(tmp_path, 16), batch=8, micro=4, schedule={"plateau": {}}))
    before = learning_rate_now(job, state)
    assert state.plateau is not None
    state.plateau.factor = 0.25
    assert learning_rate_now(job, state) == pytest.approx(0.25 * before)


def test_each_window_starts_from_a_cleared_gradient(tmp_path: Path) -> None:
    job, state = start(request_for(write_data(tmp_path, 16), batch=8, micro=4))
    window = window_of(epoch_order(7, 0, 16), 0, 0, 8, job.world)
    gradients = []
    for _ in range(2):
        compute_gradient(job, state, window, 8.0, False)
        gradients.append(state.exchange.gradient.clone())
    assert torch.equal(*gradients)


def test_a_window_without_a_valid_item_is_no_update(tmp_path: Path) -> None:
    job, state = start(request_for(write_data(tmp_path, 16, ignore_every=1), batch=8, micro=4))
    before = [parameter.detach().clone() for parameter in state.exchange.parameters]
    report = update(job, state, window_of(epoch_order(7, 0, 16), 0, 0, 8, job.world))
    assert not report.made
    assert (state.cursor.update, state.cursor.window, state.cursor.skipped, state.cursor.nonfinite) == (0, 1, 1, [])
    assert all(torch.equal(old, new) for old, new in zip(before, state.exchange.parameters, strict=True))


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
    state.deferred = True
    order = epoch_order(7, 0, 16)
    before = [parameter.detach().clone() for parameter in state.exchange.parameters]
    assert start_update(job, state, window_of(order, 0, 0, 4, job.world)) == []
    reports = start_update(job, state, window_of(order, 0, 1, 4, job.world))
    assert [report.made for report in reports] == [False]
    assert finish_update(job, state) == []
    assert state.cursor.window == 1
    assert all(torch.equal(old, new) for old, new in zip(before, state.exchange.parameters, strict=True))
