"""Resume is bit-exact, and every part of a checkpoint is needed: "Checkpoints and resume" of
docs/training_rules.py."""

from __future__ import annotations

import copy
import random
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from cluster.errors import CheckpointError, InterruptedRunError
from cluster.telemetry.events import ListSink, TrainStep
from tests.unit.loop_tests.rig import HERE, request_for, run_ranks, start, write_data
from trainers.loop import FitRequest, FitResult, fit
from trainers.loop.checkpointing import snapshot
from trainers.loop.checkpointing.folder import CheckpointFolder, Snapshot
from trainers.loop.loop import finish_epoch, remaining_windows
from trainers.loop.state import Job, State
from trainers.loop.step import update

CPU = torch.device("cpu")
UPDATES = 20
PARTS = ["model", "ema", "optimizer", "scaler", "cursor", "rng.torch", "rng.numpy", "rng.python"]


class CrashError(Exception):
    """Stands for kill -9: nothing gets to run after it."""


@pytest.fixture(autouse=True)
def growing_scaler(monkeypatch: pytest.MonkeyPatch) -> None:
    """A scaler on the CPU whose scale and tracker move within twenty updates."""
    make = lambda precision, device: torch.amp.GradScaler("cpu", init_scale=2.0, growth_interval=4)  # noqa: E731
    monkeypatch.setattr("trainers.loop.setup.build_scaler", make)


def noisy_request(folder: Path, checkpoints: Path | None, **more: Any) -> FitRequest:
    """64 rows, micro-batch 4, K = 3: six updates an epoch, the last of one micro-batch."""
    prepared = folder / "data"
    if not prepared.exists():
        write_data(prepared, 64, dtype="FP32")
    options: dict[str, Any] = {
        "epochs": 4,
        "optimizer": {"name": "adamw", "learning_rate": 0.01},
        "ema": {"decay": 0.9},
        "clip_norm": 1.0,
        "schedule": {"name": "cosine", "warmup": 0.2, "plateau": {"patience": 0, "factor": 0.5}},
        "checkpoint": {"every_updates": 1, "keep_last": 100},
        "keep": "last",
        "log_every_updates": 1,
    }
    return request_for(
        prepared, batch=12, micro=4, checkpoints=checkpoints, factory=f"{HERE}:build_noisy", **{**options, **more}
    )


def losses_of(sink: ListSink) -> list[tuple[int, float]]:
    return [(event.update, event.loss) for event in sink.events if isinstance(event, TrainStep)]


def assert_same(one: FitResult, other: FitResult) -> None:
    assert one.weights.keys() == other.weights.keys()
    assert all(torch.equal(one.weights[name], other.weights[name]) for name in one.weights)
    assert [event.metrics for event in one.history] == [event.metrics for event in other.history]
    assert (one.updates, one.best_epoch, one.metrics) == (other.updates, other.best_epoch, other.metrics)


def crash_after(windows: int) -> Any:
    calls = {"n": 0}

    def interrupt() -> bool:
        calls["n"] += 1
        if calls["n"] > windows:
            raise CrashError
        return False

    return interrupt


@pytest.mark.parametrize("cut", [1, 4, 6, 11])
def test_resume_is_bit_exact(tmp_path: Path, cut: int) -> None:
    whole_sink, sink = ListSink(), ListSink()
    whole = fit(noisy_request(tmp_path, None), sink=whole_sink, device=CPU)
    request = noisy_request(tmp_path, tmp_path / "ck")
    with pytest.raises(CrashError):
        fit(request, sink=ListSink(), device=CPU, interrupt=crash_after(cut + 3))
    folder = CheckpointFolder(tmp_path / "ck", request.train.checkpoint, request.train.best)
    position = f"e{cut // 6:05d}-w{cut % 6:08d}"
    for name in folder.names():
        if name > position:  # three more updates were made and are lost
            folder.path.joinpath(name).rename(tmp_path / f"lost-{name}")
    torch.manual_seed(999), np.random.seed(999), random.seed(999)
    resumed = fit(request, sink=sink, device=CPU)
    assert_same(resumed, whole)
    assert losses_of(sink)[-8:] == losses_of(whole_sink)[-8:]
    assert losses_of(sink)[0][0] == cut + 1, "it went on, it did not start anew"


def build_convolution() -> torch.nn.Module:
    layers = torch.nn.Conv2d(1, 4, 3), torch.nn.Conv2d(4, 3, 3), torch.nn.AdaptiveAvgPool2d(1), torch.nn.Flatten()
    return torch.nn.Sequential(*layers)


def test_resume_of_channels_last_weights_is_bit_exact(tmp_path: Path) -> None:
    """A file holds moments in plain order; the fused kernel walks through them as the weights lie in memory."""
    request = request_for(
        write_data(tmp_path / "data", 16, dtype="FP32", image=True),
        batch=4,
        micro=4,
        factory=f"{__name__}:build_convolution",
        checkpoints=tmp_path / "checkpoints",
        epochs=2,
        channels_last=True,
        keep="last",
    )
    straight = fit(replace(request, checkpoints=None), sink=ListSink(), device=CPU).weights
    asked = iter(range(5))
    with pytest.raises(InterruptedRunError):
        fit(request, sink=ListSink(), device=CPU, interrupt=lambda: next(asked, None) is None)
    resumed = fit(request, sink=ListSink(), device=CPU).weights
    assert all(torch.equal(straight[name], resumed[name]) for name in straight)


def test_notice_to_stop_writes_a_checkpoint_and_the_same_command_goes_on(tmp_path: Path) -> None:
    whole_sink, stopped_sink, sink = ListSink(), ListSink(), ListSink()
    whole = fit(noisy_request(tmp_path, None), sink=whole_sink, device=CPU)
    request = noisy_request(tmp_path, tmp_path / "ck", checkpoint={"every_epochs": 1, "keep_last": 2})
    calls = {"n": 0}

    def notice() -> bool:
        calls["n"] += 1
        return calls["n"] == 9

    with pytest.raises(InterruptedRunError):
        fit(request, sink=stopped_sink, device=CPU, interrupt=notice)
    assert (tmp_path / "ck" / "e00001-w00000003").is_dir(), "at once, in the middle of an epoch"
    assert_same(fit(request, sink=sink, device=CPU), whole)
    assert losses_of(stopped_sink) + losses_of(sink) == losses_of(whole_sink), "each update is logged once"


def _advance(job: Job, state: State, updates: int) -> list[float]:
    losses = []
    while len(losses) < updates:
        for window in remaining_windows(job, state):
            losses.append(update(job, state, window).loss_sum)
            if len(losses) == updates:
                return losses
        finish_epoch(job, state)
    return losses


def _fingerprint(job: Job, state: State, losses: list[float]) -> list[Any]:
    """Everything that the reference compares: tensors, scaler, cursor, losses."""
    taken = snapshot.take(job, state)
    tensors = {(file, name): t.clone() for file, ts in taken.tensors.items() for name, t in ts.items()}
    return [tensors, taken.state["scaler"], taken.state["cursor"], losses]


def _same(one: list[Any], other: list[Any]) -> bool:
    tensors = one[0].keys() == other[0].keys() and all(torch.equal(one[0][key], other[0][key]) for key in one[0])
    return tensors and one[1:] == other[1:]


def _with_part_of(taken: Snapshot, fresh: Snapshot, part: str) -> Snapshot:
    """`taken` with one part as a fresh run has it: what dropping it amounts to."""
    mixed = copy.deepcopy(taken)
    if part.startswith("rng."):
        mixed.tensors["workers"][part] = fresh.tensors["workers"][part]
        return mixed
    if part in mixed.tensors:
        mixed.tensors[part] = fresh.tensors[part]
    if part in mixed.state:
        mixed.state[part] = fresh.state[part]
    return mixed


@pytest.mark.parametrize("part", PARTS)
def test_every_part_of_the_checkpoint_is_needed(tmp_path: Path, part: str) -> None:
    request = noisy_request(tmp_path, None)
    job, state = start(request)
    _advance(job, state, 9)
    taken = copy.deepcopy(snapshot.take(job, state))
    whole = _fingerprint(job, state, _advance(job, state, UPDATES - 9))

    def resumed(drop: str | None) -> list[Any]:
        other_job, other = start(noisy_request(tmp_path, None, epochs=4))
        _advance(other_job, other, 2)
        fresh = copy.deepcopy(snapshot.take(other_job, other))
        snapshot.restore(other_job, other, _with_part_of(taken, fresh, drop) if drop else taken)
        return _fingerprint(other_job, other, _advance(other_job, other, UPDATES - 9))

    assert _same(resumed(None), whole)
    assert not _same(resumed(part), whole)


def test_a_missing_part_raises_instead_of_going_on(tmp_path: Path) -> None:
    job, state = start(noisy_request(tmp_path, None))
    taken = snapshot.take(job, state)
    for file in ("model", "ema", "optimizer", "workers"):
        tensors = {name: content for name, content in taken.tensors.items() if name != file}
        with pytest.raises(CheckpointError, match=file):
            snapshot.restore(job, state, Snapshot(tensors, taken.state))
    workers = {name: rows for name, rows in taken.tensors["workers"].items() if name != "rng.numpy"}
    with pytest.raises(CheckpointError, match="numpy"):
        snapshot.restore(job, state, Snapshot({**taken.tensors, "workers": workers}, taken.state))


def _fit_on_ranks(rank: int, prepared: str, checkpoints: str | None, crash: int | None, world: int) -> Any:
    seen: list[int] = []
    request = request_for(
        Path(prepared),
        batch=12,
        micro=3,
        workers=world,
        checkpoints=Path(checkpoints) if checkpoints else None,
        factory=f"{HERE}:build_noisy",
        epochs=3,
        ema={"decay": 0.9},
        checkpoint={"every_updates": 2, "keep_last": 100},
        keep="last",
        log_every_updates=1,
    )
    sink = ListSink()
    import trainers.loop.loop as loop_module

    plain = loop_module.start_update

    def recording(job: Job, state: State, window: Any, **more: Any) -> Any:
        report = plain(job, state, window, **more)
        seen.extend((window.epoch * 1000 + window.own).tolist())
        return report

    loop_module.start_update = recording  # type: ignore[assignment]
    try:
        result = fit(request, sink=sink, device=CPU, interrupt=crash_after(crash) if crash else None)
    except CrashError:
        return seen, None, losses_of(sink)
    return seen, {name: tensor.numpy() for name, tensor in result.weights.items()}, losses_of(sink)


def test_resume_of_two_workers_is_bit_exact_in_the_middle_of_an_epoch(tmp_path: Path) -> None:
    """Batch norm statistics differ between workers inside an epoch: each worker's own must come back."""
    prepared = str(write_data(tmp_path / "data", 50, dtype="FP32"))
    whole = run_ranks(2, _fit_on_ranks, tmp_path / "a", prepared, None, None, 2)
    run_ranks(2, _fit_on_ranks, tmp_path / "b", prepared, str(tmp_path / "ck"), 8, 2)
    resumed = run_ranks(2, _fit_on_ranks, tmp_path / "c", prepared, str(tmp_path / "ck"), None, 2)
    for rank in range(2):
        assert all(np.array_equal(resumed[rank][1][name], whole[rank][1][name]) for name in whole[rank][1])
    assert resumed[0][2] == whole[0][2][-len(resumed[0][2]) :]
    assert len(resumed[0][2]) < len(whole[0][2])


def test_four_workers_then_two_then_four_keep_rows_batches_and_schedule(tmp_path: Path) -> None:
    prepared = str(write_data(tmp_path / "data", 50, dtype="FP32"))
    parts = [
        run_ranks(4, _fit_on_ranks, tmp_path / "a", prepared, str(tmp_path / "ck"), 4, 4),
        run_ranks(2, _fit_on_ranks, tmp_path / "b", prepared, str(tmp_path / "ck"), 3, 2),
        run_ranks(4, _fit_on_ranks, tmp_path / "c", prepared, str(tmp_path / "ck"), None, 4),
    ]
    rows = Counter(row for part in parts for seen, _, _ in part for row in seen)
    assert rows == Counter(epoch * 1000 + row for epoch in range(3) for row in range(50)), "every row once an epoch"
    updates = [number for part in parts for number, _ in part[0][2]]
    assert updates == list(range(1, 16)), "five windows an epoch, the index goes on without a gap"


def test_a_resume_follows_the_spec_of_now(tmp_path: Path) -> None:
    """A rule for stopping early that judges the epochs there are, then a looser one, and another micro-batch."""
    checkpoints = tmp_path / "checkpoints"
    first = fit(noisy_request(tmp_path, checkpoints, epochs=3), sink=ListSink(), device=CPU)
    assert (len(first.history), first.micro_batch) == (3, 4)
    strict = {"patience": 1, "min_delta": 1000.0}
    stopped = fit(noisy_request(tmp_path, checkpoints, epochs=6, early_stopping=strict), sink=ListSink(), device=CPU)
    assert (len(stopped.history), stopped.stopped_early, stopped.updates) == (3, True, first.updates)
    longer = noisy_request(tmp_path, checkpoints, epochs=6, early_stopping={"patience": 50}, batch_size_per_worker=2)
    longer = replace(longer, batch=longer.batch.model_copy(update={"batch_size_per_worker": 2}))
    ended = fit(longer, sink=ListSink(), device=CPU)
    assert (len(ended.history), ended.stopped_early, ended.micro_batch) == (6, False, 2)
    assert ended.history[:3] == first.history
