"""Training on Ray Train workers: a user's bug, a user's own code. kill -9 is in test_kill.py, the network in
test_network.py."""

from __future__ import annotations

from dataclasses import replace
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


OWN_CODE = """
import pathlib, torch

def make(groups, momentum):
    return torch.optim.SGD(groups, lr=0.0, momentum=momentum)

def falling(update, updates_total):
    return 1.0 - 0.5 * update / updates_total

class Record:
    ranks = "all"

    def __init__(self, folder):
        self.folder, self.updates = pathlib.Path(folder), 0

    def after_update(self, training):
        self.updates += 1

    def after_epoch(self, training, metrics):
        text = f"{training.rank} of {training.workers}: epoch {training.epoch}, {self.updates} updates\\n"
        with (self.folder / f"seen.{training.rank}").open("a") as file:
            file.write(text)
"""


@pytest.mark.slow  # 20 s; callbacks and optimizers are tested in one process in tests/unit/loop_tests
def test_ones_own_optimizer_schedule_and_callback_reach_ray_workers(ray_local: str, tmp_path: Path) -> None:
    """From a module in the folder in which manta was started, which is no package that workers have."""
    code = tmp_path / "code"
    code.mkdir()
    (code / "manta_own_code.py").write_text(OWN_CODE)
    request = request_for(
        write_data(tmp_path / "data", 48),
        batch=12,
        micro=3,
        workers=2,
        epochs=2,
        optimizer={"name": "manta_own_code:make", "options": {"momentum": 0.5}},
        schedule={"name": "manta_own_code:falling"},
        callbacks=[{"name": "manta_own_code:Record", "arguments": {"folder": str(code)}}],
    )
    result = launch_fit(replace(request, code=str(code)), events=tmp_path / "events.jsonl", folder=tmp_path / "out")
    assert result.updates == 8
    for rank in range(2):
        seen = (code / f"seen.{rank}").read_text().splitlines()
        assert seen == [f"{rank} of 2: epoch {epoch}, {4 * epoch} updates" for epoch in (1, 2)]
