"""Training on Ray Train workers: a user's bug. kill -9 is in test_kill.py, the network in test_network.py."""

from __future__ import annotations

from pathlib import Path

import pytest

from cluster.errors import ModelError
from tests.unit.loop_tests.rig import request_for, write_data
from trainers.launch.fit import FitRequest, launch_fit

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


def test_a_users_bug_is_not_retried_and_its_traceback_is_shown(ray_local: str, tmp_path: Path) -> None:
    request = victim_request(tmp_path, "bug", "bug", at=3)
    (tmp_path / "bug").mkdir()
    with pytest.raises(ModelError, match="ZeroDivisionError: the user's bug") as caught:
        launch_fit(request, events=tmp_path / "events.jsonl", folder=tmp_path / "out")
    assert (tmp_path / "bug" / "marker").read_text() == "raised\n", "once"
    assert "victims.py" in caught.value.details["traceback"]
    assert caught.value.details["rank"] == 1
