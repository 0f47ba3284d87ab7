"""Attempts at a training: their plans, and what Ctrl-C waits for."""

from __future__ import annotations

import signal
import threading
from contextlib import nullcontext
from pathlib import Path

import pytest

import trainers.launch.fit as fit_module
import trainers.launch.worker_group as workers_module
from tests.unit.loop_tests.rig import request_for
from trainers.launch.failures import AttemptFailed, Failure
from trainers.launch.ready_workers import ReadyWorkers
from trainers.loop import FitRequest


def test_an_attempt_with_fewer_workers_has_a_plan_of_its_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Three of four workers find room, then four: the global batch stays, and accumulation makes up for the one."""
    request = request_for(tmp_path, batch=64, micro=16, workers=4)
    room, plans = iter([3, 4]), []

    class Attempt:
        growing = False

        def __init__(self, request: FitRequest, *_: object) -> None:
            plans.append(request.batch)

        def run(self) -> None:
            if len(plans) == 1:
                raise AttemptFailed(Failure("lost", "worker 1 died", RuntimeError("gone"), rank=1))

    monkeypatch.setattr(fit_module, "_workers_now", lambda *_, **__: next(room))
    monkeypatch.setattr(fit_module, "_LocalAttempt", Attempt)
    monkeypatch.setattr(fit_module, "read_result", lambda folder: None)
    fit_module.launch_fit(request, events=tmp_path / "events.jsonl", folder=tmp_path, ready=ReadyWorkers(local=True))
    assert [(plan.workers, plan.batch_size_per_worker, plan.accumulation_steps) for plan in plans] == [
        (3, 16, 2),
        (4, 16, 1),
    ]
    assert {plan.batch_size_global for plan in plans} == {64}


def test_ctrl_c_waits_for_the_last_checkpoint(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Thread.join would not: interrupted once, it takes the living thread for ended (Python 3.11)."""
    started, asked, written = threading.Event(), threading.Event(), []

    class Control:
        def assign(self, job: object) -> None:
            pass

        def workers_stand(self) -> bool:
            return True

        def request_stop(self, reason: str) -> None:
            asked.set()

        def close(self) -> None:
            pass

    def train(num_workers: int, timeout_s: float, storage: Path, control: Control) -> None:
        started.set()
        assert asked.wait(20)
        threading.Event().wait(0.5)  # the checkpoint takes its time
        written.append("checkpoint")

    monkeypatch.setattr(workers_module, "WorkerControl", Control)
    monkeypatch.setattr(workers_module, "_train", train)
    monkeypatch.setattr(fit_module, "worker_channel", lambda events: nullcontext())
    main = threading.get_ident()

    def press() -> None:
        started.wait(20)
        signal.pthread_kill(main, signal.SIGINT)

    request = request_for(tmp_path, batch=4, micro=4)
    threading.Thread(target=press, daemon=True).start()
    with pytest.raises(KeyboardInterrupt):
        fit_module._RayAttempt(request, tmp_path / "events.jsonl", tmp_path, ReadyWorkers(), may_grow=False).run()
    assert written == ["checkpoint"]
