"""What an elastic run decides, without Ray: room, budgets, the spec."""

from __future__ import annotations

import itertools
import json
import signal
import threading
from contextlib import nullcontext
from pathlib import Path

import pytest

import trainers.launch.fit as fit_module
import trainers.launch.worker_group as workers_module
from cluster.errors import InterruptedRunError, MemoryShortError, ModelError, SpecError, WorkerLostError
from cluster.spec import parse_spec
from cluster.spec.batch_plan import BatchPlan
from cluster.spec.train import FaultSpec, WorkersSpec
from tests.unit.loop_tests.rig import request_for
from trainers.launch.capacity import count_slots, wait_for_slots
from trainers.launch.failures import AttemptFailed, Budget, Failure, classify
from trainers.launch.warm import ReadyWorkers
from trainers.launch.worker_group import no_retries
from trainers.loop import FitRequest

SPEC = "version: 1\ndata: {source: {kind: sklearn, dataset: digits}}\n"


def lost() -> Failure:
    return Failure("lost", "worker 1 died", RuntimeError("gone"), rank=1)


def test_room_is_counted_by_node_because_a_worker_does_not_straddle_two() -> None:
    free = {"a": {"CPU": 1.5, "GPU": 2.0}, "b": {"CPU": 2.5}, "c": {}}
    assert count_slots(free, {"CPU": 1}) == 3, "the sum would say 4"
    assert count_slots(free, {"CPU": 1, "GPU": 1}) == 1


def test_all_room_is_taken_at_once_and_less_only_after_the_wait() -> None:
    assert wait_for_slots(1, 4, 60.0, lambda: 9) == 4
    looks = itertools.chain([1, 2, 4], itertools.repeat(0))
    assert wait_for_slots(1, 4, 60.0, lambda: next(looks)) == 4, "a place that comes back in time is waited for"
    assert wait_for_slots(2, 4, 0.0, lambda: 3) == 3
    with pytest.raises(WorkerLostError, match=r"room for 1 workers .* train\.workers\.min is 2"):
        wait_for_slots(2, 4, 0.0, lambda: 1)


def test_lost_workers_and_notices_have_a_budget_each_and_growing_has_none() -> None:
    budget = Budget(FaultSpec(worker_restarts=1, preemptions=2))
    notice = Failure("stopped", "", InterruptedRunError("Training was told to stop", found="a notice"))
    assert "restart 1 of 2 for this cause" in budget.spend(notice, growing=False)
    assert "restart 1 of 1 from the last checkpoint" in budget.spend(lost(), growing=False)
    for _ in range(5):
        assert "room for more workers" in budget.spend(notice, growing=True)
    assert "restart 2 of 2" in budget.spend(notice, growing=False)
    with pytest.raises(InterruptedRunError):
        budget.spend(notice, growing=False)
    with pytest.raises(WorkerLostError, match="after 1 restarts"):
        budget.spend(lost(), growing=False)


def test_a_node_that_was_taken_away_is_no_lost_worker_and_not_tried_again_for_ever() -> None:
    """Ray Train's own budget for it is infinite; ours is not, and Ray Train's is off."""
    from ray.exceptions import ActorDiedError
    from ray.train.v2.api.exceptions import PreemptionError, WorkerGroupError
    from ray.train.v2.api.preemption import PreemptionInfo

    taken = classify(PreemptionError(PreemptionInfo(deadline_ms=None, preempted_node_to_ranks={"ab": [1]})))
    died = ActorDiedError()
    assert classify(WorkerGroupError("", {0: died})).kind == "lost"
    died._preempted = True
    assert died.preempted
    assert classify(WorkerGroupError("", {0: died})).kind == taken.kind == "stopped"
    stopped = InterruptedRunError("Training was told to stop", found="a notice")
    assert classify(WorkerGroupError("", {0: stopped, 1: stopped})).kind == "stopped"
    budget = Budget(FaultSpec(preemptions=1))
    budget.spend(taken, growing=False)
    with pytest.raises(WorkerLostError, match=r"train\.faults\.preemptions"):
        budget.spend(taken, growing=False)
    off = no_retries()
    assert (off.max_failures, off.controller_failure_limit, off.max_preemption_failures) == (0, 0, 0)


def test_bugs_and_errors_of_ours_are_never_tried_again() -> None:
    budget = Budget(FaultSpec())
    with pytest.raises(MemoryShortError):
        budget.spend(Failure("ours", "", MemoryShortError("Cannot", found="little")), growing=False)
    with pytest.raises(ModelError, match="not tried again"):
        budget.spend(Failure("bug", "KeyError: 'x'", KeyError("x"), "Traceback", 0), growing=False)
    assert budget.restarts == 0


def test_workers_are_a_number_or_a_range_and_the_plan_is_made_for_the_most() -> None:
    spec = parse_spec(SPEC + "train: {workers: {min: 2, max: 4}, batch_size_global: 64, batch_size_per_worker: 4}")
    assert spec.train.workers == WorkersSpec(min=2, max=4)
    plan = BatchPlan.of(spec.train, 1000)
    assert (plan.workers, plan.batch_size_per_worker, plan.accumulation_steps) == (4, 4, 4)
    again = parse_spec(json.dumps(spec.model_dump(mode="json")))
    assert again == spec, "what is written to resolved.yaml is read again"


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
                raise AttemptFailed(lost())

    monkeypatch.setattr(fit_module, "_workers_now", lambda *_: next(room))
    monkeypatch.setattr(fit_module, "_LocalAttempt", Attempt)
    monkeypatch.setattr(fit_module, "read_result", lambda folder: None)
    fit_module.launch_fit(request, events=tmp_path / "events.jsonl", folder=tmp_path, ready=ReadyWorkers(local=True))
    assert [(plan.workers, plan.batch_size_per_worker, plan.accumulation_steps) for plan in plans] == [
        (3, 16, 2),
        (4, 16, 1),
    ]
    assert {plan.batch_size_global for plan in plans} == {64}


def test_min_above_max_is_refused() -> None:
    with pytest.raises(SpecError, match="min must not be above max"):
        parse_spec(SPEC + "train: {workers: {min: 5, max: 4}}")


def test_ctrl_c_waits_for_the_last_checkpoint(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Thread.join would not: interrupted once, it takes the living thread for ended (Python 3.11)."""
    started, asked, written = threading.Event(), threading.Event(), []

    class Control:
        def assign(self, job: object) -> None:
            pass

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
