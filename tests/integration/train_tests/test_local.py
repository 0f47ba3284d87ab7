"""One worker without Ray: the bytes of the loop, also after kill -9; a bug; a stop; a parent that dies."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from dataclasses import replace
from pathlib import Path

import psutil
import pytest

from cluster.errors import ModelError
from cluster.runtime.private.reaper import MARKER_VARIABLE
from cluster.telemetry.events import Message, TrainStep, read_events
from tests.unit.loop_tests.rig import request_for, write_data
from trainers.launch.failures import AttemptFailed
from trainers.launch.fit import launch_fit
from trainers.launch.local_worker import LocalWorker
from trainers.launch.ready_workers import ReadyWorkers
from trainers.loop import FitRequest

VICTIMS = "tests.integration.train_tests.victims"
DEADLINE_S = 60.0


def victim_request(folder: Path, deed: str, at: int) -> FitRequest:
    prepared = folder.parent / "data"
    if not prepared.exists():
        write_data(prepared, 48, dtype="FP32")
    folder.mkdir()
    return request_for(
        prepared, batch=12, micro=3, workers=1, checkpoints=folder / "checkpoints",
        factory=f"{VICTIMS}:build_victim",
        arguments={"marker": str(folder / "marker"), "rank": 0, "at": at, "deed": deed},
        epochs=2, checkpoint={"every_updates": 1}, log_every_updates=1,
    )  # fmt: skip


def test_kill_9_inside_a_window_changes_no_byte_and_a_bug_is_not_retried(tmp_path: Path) -> None:
    plain = victim_request(tmp_path / "plain", "kill", at=-1)
    judge = LocalWorker()  # its weights depend on the number of threads, as those of any process
    judge.assign(replace(plain, checkpoints=None), tmp_path / "plain" / "events.jsonl", tmp_path / "plain")
    judge.wait()
    judge.close()
    events = tmp_path / "events.jsonl"
    request = victim_request(tmp_path / "killed", "kill", at=6)  # the second micro-batch of the second window
    ready = ReadyWorkers(local=True, worker=LocalWorker())
    first = ready.worker.pid if ready.worker else 0
    launch_fit(request, events=events, folder=tmp_path / "out", ready=ready)
    assert ready.worker is None, "the process that stood was taken"
    assert not psutil.pid_exists(first)
    assert (tmp_path / "killed" / "marker").read_text() == "killed"
    said = [record.text for record in read_events(events) if isinstance(record, Message)]
    assert any("the training process ended with signal 9; restart 1 of 3" in text for text in said), said
    for name in ("weights.safetensors", "history.json"):
        assert (tmp_path / "out" / name).read_bytes() == (tmp_path / "plain" / name).read_bytes(), name
    steps = {record.update for record in read_events(events) if isinstance(record, TrainStep)}
    assert steps == set(range(1, 9))

    request = victim_request(tmp_path / "bug", "bug", at=3)
    with pytest.raises(ModelError, match="ZeroDivisionError: the user's bug") as caught:
        launch_fit(request, events=events, folder=tmp_path / "out2", ready=ReadyWorkers(local=True))
    assert (tmp_path / "bug" / "marker").read_text() == "raised\n", "once"
    assert "victims.py" in caught.value.details["traceback"]


def test_a_stop_writes_a_checkpoint_and_no_worker_outlives_its_parent(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(MARKER_VARIABLE, "a Ray that cannot start: its reaper ends what carries this")
    write_data(tmp_path / "data", 48)
    request = request_for(
        tmp_path / "data", batch=12, micro=3, workers=1, checkpoints=tmp_path / "checkpoints",
        factory=f"{VICTIMS}:build_paced", arguments={"until": str(tmp_path / "go"), "wait_s": 0.05},
        epochs=500, log_every_updates=1,
    )  # fmt: skip
    worker, events = LocalWorker(), tmp_path / "events.jsonl"
    assert MARKER_VARIABLE.encode() not in Path(f"/proc/{worker.pid}/environ").read_bytes()
    ended: list[AttemptFailed] = []

    def train() -> None:
        try:
            worker.assign(request, events, tmp_path / "out")
            worker.wait()
        except AttemptFailed as error:
            ended.append(error)

    thread = threading.Thread(target=train)
    thread.start()
    wait_for(lambda: bool(ended) or any(isinstance(event, TrainStep) for event in read_events(events)))
    worker.stop(DEADLINE_S)
    thread.join(DEADLINE_S)
    assert [error.failure.kind for error in ended] == ["stopped"]
    assert list((tmp_path / "checkpoints").iterdir())
    worker.close()

    code = "import time; from trainers.launch.local_worker import LocalWorker; print(LocalWorker().pid, flush=True); "
    code += "time.sleep(99)"
    parent = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True)
    assert parent.stdout is not None
    child = int(parent.stdout.readline())
    parent.stdout.close()
    os.kill(parent.pid, signal.SIGKILL)
    parent.wait()
    wait_for(lambda: not psutil.pid_exists(child) or psutil.Process(child).status() == psutil.STATUS_ZOMBIE)


def wait_for(condition: object) -> None:
    deadline = time.monotonic() + DEADLINE_S
    while not condition():  # type: ignore[operator]
        assert time.monotonic() < deadline
        time.sleep(0.05)
