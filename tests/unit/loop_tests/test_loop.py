"""The loop around the updates: which epoch is kept, when it stops, how workers stay together."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.distributed as dist
from torch import nn

from cluster.telemetry.events import ListSink
from tests.unit.loop_tests.rig import CLASSES, FEATURES, HERE, request_for, run_ranks, write_data
from trainers.loop import fit
from trainers.loop.setup import set_up

CPU = torch.device("cpu")
THIS = "tests.unit.loop_tests.test_loop"


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


def test_samples_a_second_are_rows_that_were_read(tmp_path: Path) -> None:
    """With a batch that grows, a short last window, a window that is skipped, and after a resume."""
    prepared = write_data(tmp_path / "data", 50, dtype="FP32")
    request = request_for(
        prepared,
        batch=16,
        micro=8,
        arguments={"double": False},
        epochs=3,
        growth={"factor": 2.0},
        objective=f"{HERE}:poisoned_losses",
        objective_arguments={"at": (1,)},
        checkpoints=tmp_path / "ck",
    )

    def rows(epochs: int) -> float:
        train = request.train.model_copy(update={"epochs": epochs})
        details = fit(replace(request, train=train), sink=ListSink(), device=CPU).details
        return details["samples_per_s"] * details["seconds"]

    assert rows(3) == pytest.approx(3 * 50)
    assert rows(5) == pytest.approx(2 * 50), "those of this part"


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
