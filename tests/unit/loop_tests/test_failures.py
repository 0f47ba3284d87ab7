"""Memory that does not suffice, and one worker that fails: "Failures" of docs/training_rules.py."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from cluster.errors import DivergedError, MemoryShortError, WorkerLostError
from cluster.telemetry.events import ListSink, Message, TrainStep
from tests.unit.loop_tests.rig import HERE, request_for, run_ranks, start, write_data
from trainers.loop import fit
from trainers.loop.checkpointing.folder import CheckpointFolder
from trainers.loop.data.sampler import Window, part
from trainers.loop.step import compute_gradient, update

CPU = torch.device("cpu")


def _short_request(prepared: Path, micro: int, limit: int, rank: int | None = None, workers: int = 1) -> Any:
    return request_for(
        prepared,
        batch=16,
        micro=micro,
        workers=workers,
        factory=f"{HERE}:build_short",
        arguments={"limit": limit, "rank": rank},
    )


def test_oom_retry_keeps_gradient_rng_and_buffers(tmp_path: Path) -> None:
    """Micro-batch 16 with memory for 4: two failures after forwards that used batch norm and the RNG."""
    prepared = write_data(tmp_path, 16, dtype="FP32")
    window = Window(0, 0, np.arange(16), 0, 16)
    ends = []
    for micro in (16, 4):
        job, state = start(_short_request(prepared, micro, limit=4))
        compute_gradient(job, state, window, 16.0, False)
        assert state.micro_size == 4
        ends.append((state.exchange.gradient.clone(), state.model.state_dict(), torch.get_rng_state()))
    assert torch.equal(ends[0][0], ends[1][0])
    assert all(torch.equal(ends[0][1][name], ends[1][1][name]) for name in ends[0][1])
    assert torch.equal(ends[0][2], ends[1][2])


def test_a_single_sample_that_does_not_fit_is_said_so(tmp_path: Path) -> None:
    job, state = start(_short_request(write_data(tmp_path, 16, dtype="FP32"), micro=4, limit=0))
    with pytest.raises(MemoryShortError, match="one sample"):
        update(job, state, Window(0, 0, np.arange(16), 0, 16))


def _one_rank_short(rank: int, prepared: str) -> tuple:
    job, state = start(_short_request(Path(prepared), micro=8, limit=4, rank=1, workers=2))
    from trainers.loop.distributed.world import World

    window = Window(0, 0, np.arange(16), *part(16, World(rank, 2)))
    report = update(job, state, window)
    return report.made, state.micro_size, torch.cat([p.detach().flatten() for p in state.exchange.parameters]).numpy()


def test_memory_short_on_one_rank_makes_the_micro_batch_smaller_on_all(tmp_path: Path) -> None:
    prepared = str(write_data(tmp_path / "data", 16, dtype="FP32"))
    results = run_ranks(2, _one_rank_short, tmp_path / "ranks", prepared)
    assert [result[:2] for result in results] == [(True, 4), (True, 4)]
    assert np.array_equal(results[0][2], results[1][2])


def _one_rank_breaks(rank: int, prepared: str, in_backward: bool, bucket_mib: float) -> Any:
    request = request_for(
        Path(prepared),
        batch=16,
        micro=4,
        workers=2,
        factory=f"{HERE}:build_breaking",
        arguments={"rank": 1, "in_backward": in_backward},
        exchange={"bucket_mib": bucket_mib},
    )
    return fit(request, sink=ListSink(), device=CPU)


@pytest.mark.parametrize(
    ("in_backward", "bucket_mib"), [(False, 25.0), (True, 25.0), (True, 0.0002)], ids=["forward", "backward", "sent"]
)
def test_one_rank_failing_is_agreed_on_by_all(tmp_path: Path, in_backward: bool, bucket_mib: float) -> None:
    prepared = str(write_data(tmp_path / "data", 16))
    other, culprit = run_ranks(
        2, _one_rank_breaks, tmp_path / "ranks", prepared, in_backward, bucket_mib, may_raise=True
    )
    assert culprit[:2] == ("raised", "ZeroDivisionError"), "the culprit raises the user's own error"
    assert other[:2] == ("raised", "PeerFailedError")
    assert "worker 1 failed" in other[2]
    assert "the user's bug" in other[2]


def test_rollback_leaves_the_offending_windows_out(tmp_path: Path) -> None:
    """Windows 7 to 9 (of 4 an epoch) are never finite: past the budget the run goes back and does without them."""
    prepared = write_data(tmp_path / "data", 16, dtype="FP32")
    sink = ListSink()
    request = request_for(
        prepared,
        batch=4,
        micro=4,
        arguments={"double": False},
        epochs=5,
        checkpoints=tmp_path / "ck",
        faults={"nonfinite_updates": 1, "rollbacks": 1},
        objective=f"{HERE}:poisoned_losses",
        objective_arguments={"at": (9, 10)},
    )
    result = fit(request, sink=sink, device=CPU)
    assert result.updates == 5 * 4 - 2
    assert result.skipped_updates == 2
    said = [event.text for event in sink.events if isinstance(event, Message)]
    assert any("leaving out 2 windows" in text for text in said)


def test_skip_then_roll_back_then_stop_and_name_the_layer(tmp_path: Path) -> None:
    """All three steps in one run: windows 10, 11, 12 are skipped (two are allowed), the run goes back to the last
    epoch and does without them, what follows diverges too, and the layer is named. The checkpoint stays finite."""
    sink = ListSink()
    request = request_for(
        write_data(tmp_path / "data", 16, dtype="FP32"),
        batch=4,
        micro=4,
        factory=f"{HERE}:build_overheating",
        arguments={"at": 9},
        epochs=6,
        checkpoints=tmp_path / "ck",
        faults={"nonfinite_updates": 2, "rollbacks": 1},
    )
    with pytest.raises(DivergedError, match=r"3 windows in a row .* the output of layer hot is the first"):
        fit(request, sink=sink, device=CPU)
    said = [event.text for event in sink.events if isinstance(event, Message) and "checkpoint" in event.text]
    assert len(said) == 1
    assert "back to checkpoint e00002-w00000000, leaving out 3 windows" in said[0]
    folder = CheckpointFolder(tmp_path / "ck", request.train.checkpoint, request.train.best)
    name, problems = folder.newest_valid()
    assert (name, problems) == ("e00003-w00000000", [])
    assert all(torch.isfinite(tensor).all() for tensor in folder.read(name).tensors["model"].values())


def test_rollback_condemns_windows_of_the_epoch_before_too(tmp_path: Path) -> None:
    """The last window of epoch 2 and the first of epoch 3 are never finite; the checkpoint is older than both."""
    request = request_for(
        write_data(tmp_path / "data", 16, dtype="FP32"),
        batch=4,
        micro=4,
        arguments={"double": False},
        epochs=5,
        checkpoints=tmp_path / "ck",
        checkpoint={"every_epochs": 2},
        faults={"nonfinite_updates": 1, "rollbacks": 1},
        objective=f"{HERE}:poisoned_losses",
        objective_arguments={"at": (11, 12)},
        log_every_updates=1,
    )
    sink = ListSink()
    result = fit(request, sink=sink, device=CPU)
    made = [event.update for event in sink.events if isinstance(event, TrainStep)]
    assert (made.count(8), made.count(9)) == (1, 2), "back to update 8, and on from there"
    assert (result.updates, result.skipped_updates) == (5 * 4 - 2, 2)


def test_fp16_that_overflows_at_every_scale_names_the_layer(tmp_path: Path) -> None:
    request = request_for(
        write_data(tmp_path / "data", 16, dtype="FP32"),
        batch=4,
        micro=4,
        factory=f"{HERE}:build_overheating",
        arguments={"at": 3},
        epochs=20,
        precision="fp16",
    )
    with pytest.raises(DivergedError, match=r"loss scale fell to .* the output of layer hot is the first"):
        fit(request, sink=ListSink(), device=CPU)


def test_evaluation_that_does_not_fit_is_tried_with_fewer_rows(tmp_path: Path) -> None:
    """Validation forwards are larger than training's: what training has memory for must not end there."""
    prepared = write_data(tmp_path / "data", 48)
    found = [
        fit(
            request_for(
                prepared, batch=8, micro=4, epochs=2, factory=f"{HERE}:build_short_validation", arguments=limit
            ),
            sink=ListSink(),
            device=CPU,
        ).metrics
        for limit in ({"limit": 3}, {"limit": 1000})
    ]
    assert found[0] == pytest.approx(found[1], rel=1e-6)
    request = request_for(prepared, batch=8, micro=4, factory=f"{HERE}:build_short_validation", arguments={"limit": 0})
    with pytest.raises(MemoryShortError, match="one sample"):
        fit(request, sink=ListSink(), device=CPU)


def _one_rank_breaks_in_validation(rank: int, prepared: str) -> Any:
    request = request_for(
        Path(prepared), batch=16, micro=4, workers=2, factory=f"{HERE}:build_short_validation", arguments={"rank": 1}
    )
    return fit(request, sink=ListSink(), device=CPU)


def test_one_rank_failing_in_validation_is_agreed_on_by_all(tmp_path: Path) -> None:
    prepared = str(write_data(tmp_path / "data", 16))
    other, culprit = run_ranks(2, _one_rank_breaks_in_validation, tmp_path / "ranks", prepared, may_raise=True)
    assert culprit[:2] == ("raised", "ZeroDivisionError")
    assert other[:2] == ("raised", "PeerFailedError")
    assert "worker 1 failed" in other[2]
    assert "the user's bug" in other[2]


def _one_rank_hangs(rank: int, prepared: str) -> Any:
    request = request_for(Path(prepared), batch=8, micro=4, workers=2, factory=f"{HERE}:build_hanging")
    try:
        fit(request, sink=ListSink(), device=CPU)
    except WorkerLostError as error:
        return error.found, error.details
    return None


def test_watchdog_names_the_missing_rank_and_shows_all_stacks(tmp_path: Path) -> None:
    prepared = str(write_data(tmp_path / "data", 16))
    waiting, _ = run_ranks(2, _one_rank_hangs, tmp_path / "ranks", prepared, may_raise=True, timeout_s=8.0)
    found, details = waiting
    assert "worker 1 did not come in time" in found
    assert details["missing"] == [1]
    assert "wait_for_nothing" in details["stacks"]["1"]
    assert "exchange" in details["stacks"]["0"] or "who_is_missing" in details["stacks"]["0"]
