"""What a snapshot holds and gives back."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path

import torch

from cluster.telemetry.events import EpochFinished
from tests.unit.loop_tests.rig import request_for, start, write_data
from trainers.loop.checkpointing import snapshot
from trainers.loop.checkpointing.folder import CheckpointFolder, Snapshot
from trainers.loop.parts import rng
from trainers.loop.state import Best, Cursor

CPU = torch.device("cpu")


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


def test_another_number_of_workers_does_not_draw_the_first_epochs_numbers_again(tmp_path: Path) -> None:
    job, state = start(request_for(write_data(tmp_path, 16), batch=8, micro=4))
    state.cursor.update = 5
    taken = snapshot.take(job, state)
    rng.seed_everything(7, 0)
    first = torch.rand(4)
    snapshot.restore(job, state, Snapshot(taken.tensors, {**taken.state, "workers": 2}))
    assert not torch.equal(torch.rand(4), first)
