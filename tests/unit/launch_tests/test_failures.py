"""Which ends of an attempt are tried again, and how often."""

from __future__ import annotations

import pytest

from cluster.errors import InterruptedRunError, MemoryShortError, ModelError, WorkerLostError
from cluster.spec.train import FaultSpec
from trainers.launch.failures import Budget, Failure, classify
from trainers.launch.worker_group import no_retries


def lost() -> Failure:
    return Failure("lost", "worker 1 died", RuntimeError("gone"), rank=1)


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


def test_waiting_for_room_is_no_lost_worker_and_costs_nothing() -> None:
    from ray.train.v2._internal.exceptions import WorkerGroupStartupTimeoutError
    from ray.train.v2.api.exceptions import ControllerError

    waiting = classify(ControllerError(WorkerGroupStartupTimeoutError(num_workers=2)))
    assert waiting.kind == "waiting"
    budget = Budget(FaultSpec(worker_restarts=0, preemptions=0))
    for _ in range(5):
        assert "goes on waiting" in budget.spend(waiting, growing=False)
    assert (budget.restarts, budget.preemptions) == (0, 0)


def test_bugs_and_errors_of_ours_are_never_tried_again() -> None:
    budget = Budget(FaultSpec())
    with pytest.raises(MemoryShortError):
        budget.spend(Failure("ours", "", MemoryShortError("Cannot", found="little")), growing=False)
    with pytest.raises(ModelError, match="not tried again"):
        budget.spend(Failure("bug", "KeyError: 'x'", KeyError("x"), "Traceback", 0), growing=False)
    assert budget.restarts == 0
