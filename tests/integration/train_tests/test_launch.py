"""Training on Ray Train workers: the same bytes as without Ray, kill -9, a user's bug."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from cluster.errors import ModelError
from cluster.telemetry.events import EpochFinished, ListSink, Message, TrainStep, read_events
from tests.unit.loop_tests.rig import request_for, run_ranks, write_data
from trainers.launch import launch_fit
from trainers.launch.fit import FitRequest
from trainers.loop import fit

HERE = "tests.integration.train_tests.victims"


def victim_request(folder: Path, name: str, deed: str, at: int) -> FitRequest:
    prepared = folder / "data"
    if not prepared.exists():
        write_data(prepared, 48, dtype="FP32")
    return request_for(
        prepared,
        batch=12,
        micro=3,
        workers=2,
        checkpoints=folder / name / "checkpoints",
        factory=f"{HERE}:build_victim",
        arguments={"marker": str(folder / name / "marker"), "rank": 1, "at": at, "deed": deed},
        epochs=3,
        ema={"decay": 0.9},
        keep="last",
        checkpoint={"every_updates": 1},
        log_every_updates=1,
    )


def _fit_plain(rank: int, request: FitRequest) -> dict[str, np.ndarray]:
    result = fit(request, sink=ListSink(), device=torch.device("cpu"))
    return {name: tensor.numpy() for name, tensor in result.weights.items()}


def test_kill_9_of_a_worker_is_retried_and_ends_with_the_same_bytes(ray_local: str, tmp_path: Path) -> None:
    """Killed in the second micro-batch of a window in the middle of an epoch; compared with plain gloo workers."""
    request = victim_request(tmp_path, "killed", "kill", at=12)
    (tmp_path / "killed").mkdir()
    never = {**request.model_arguments, "at": -1}
    plain = run_ranks(2, _fit_plain, tmp_path / "ranks", replace(request, checkpoints=None, model_arguments=never))
    events = tmp_path / "events.jsonl"
    result = launch_fit(request, events=events, folder=tmp_path / "out")
    assert (tmp_path / "killed" / "marker").read_text() == "killed"
    records = read_events(events)
    assert any("restart 1 of 3" in record.text for record in records if isinstance(record, Message))
    assert any("goes on from checkpoint" in record.text for record in records if isinstance(record, Message))
    assert result.updates == 12
    assert result.weights.keys() == plain[0].keys()
    assert all(np.array_equal(result.weights[name].numpy(), plain[0][name]) for name in plain[0])
    assert len([record for record in records if isinstance(record, TrainStep)]) >= 12, "metrics came by the channel"
    assert [record.epoch for record in records if isinstance(record, EpochFinished)][-1] == 3
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["history.json", "weights.safetensors"]


def test_a_users_bug_is_not_retried_and_its_traceback_is_shown(ray_local: str, tmp_path: Path) -> None:
    request = victim_request(tmp_path, "bug", "bug", at=3)
    (tmp_path / "bug").mkdir()
    with pytest.raises(ModelError, match="ZeroDivisionError: the user's bug") as caught:
        launch_fit(request, events=tmp_path / "events.jsonl", folder=tmp_path / "out")
    assert (tmp_path / "bug" / "marker").read_text() == "raised\n", "once"
    assert "victims.py" in caught.value.details["traceback"]
    assert caught.value.details["rank"] == 1
