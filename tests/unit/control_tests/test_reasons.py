"""Why a run waits and why it never could start, in the words that a person reads."""

from __future__ import annotations

import pytest
from hypothesis import given, settings

from cluster.control.policy import Policy, Quota
from cluster.control.reasons import explain, largest_like, refusal
from cluster.control.rooms import Need, Room, Rooms, Share, fit
from cluster.control.scheduler import decide
from cluster.control.state import ClusterState, Request, Running
from tests.unit.control_tests.test_scheduler import CLUSTERS, NEEDS, with_running

HOSTS = {"gpu-01": Room(32, (80.0,) * 4), "gpu-03": Room(32, (80.0,) * 4)}


def run_of(name: str, host: str, gpus: int, ends_s: float, duration_s: float | None = 3600.0) -> Running:
    request = Request(name, Need(cpus=4, gpus=gpus), 0.0, "ann", duration_s=duration_s)
    return Running(request, (Share(host, 1, 4.0, (80.0,) * gpus),), 0.0, ends_s)


def told(state: ClusterState, request: Request, policy: Policy | None = None, now_s: float = 0.0) -> str:
    policy = policy or Policy()
    state = state.with_request(request)
    decisions = decide(state, policy, now_s)
    return explain(state.applied(decisions, now_s), policy, decisions, request, now_s)


def test_the_largest_free_block_and_who_holds_the_rest() -> None:
    state = with_running(ClusterState.of(HOSTS), run_of("a11", "gpu-01", 4, 7200.0))
    state = with_running(state, run_of("7f2", "gpu-03", 2, 720.0))
    request = Request("me", Need(gpus=4, gpu_memory_gib=40), 5.0)
    assert told(state, request) == (
        "waiting: needs 4 GPUs with 40 GiB free on one host; the largest free block is 2 on gpu-03, the rest held by "
        "run 7f2 for about 12 min more"
    )
    assert told(state, request, now_s=900.0).endswith("run 7f2 for longer than expected")


def test_holders_of_unknown_length_and_several_hosts() -> None:
    state = ClusterState.of(HOSTS)
    for host in HOSTS:
        state = with_running(state, run_of(f"on-{host}", host, 4, 86400.0, None))
    assert told(state, Request("me", Need(gpus=1), 5.0)) == (
        "waiting: needs 1 GPU on one host; no GPU like that is free, run on-gpu-01 holds 4 GPUs for an unknown time"
    )
    assert told(state, Request("me", Need(workers=8, gpus=1), 5.0)).startswith(
        "waiting: needs 8 workers of 1 GPU each; free now: room for 0 workers, run on-gpu-01 holds 4 GPUs"
    )


def test_behind_the_head_and_room_that_is_kept_for_it() -> None:
    state = with_running(
        ClusterState.of({"a": Room(4)}),
        Running(Request("r", Need(cpus=3), 0.0, duration_s=60.0), (Share("a", 1, 3.0),), 0.0, 60.0),
    )
    state = state.with_request(Request("large", Need(cpus=4), 1.0))
    assert told(state, Request("small", Need(cpus=1), 2.0)) == (
        "waiting: needs 1 CPU on one host; there is room, kept for large, which is before it in the queue"
    )
    assert told(state, Request("wide", Need(cpus=2), 2.0)) == (
        "waiting: needs 2 CPUs on one host; the largest free block is 1 CPU on a, the rest held by run r for about "
        "1 min more; behind large in the queue"
    )


def test_a_quota_that_is_used_up() -> None:
    state = with_running(ClusterState.of(HOSTS), run_of("x", "gpu-01", 4, 60.0))
    policy = Policy(quotas={"ann": Quota(gpus=5)})
    assert told(state, Request("me", Need(gpus=2), 5.0, "ann"), policy) == (
        "waiting: needs 2 GPUs on one host; ann holds 4 GPUs of a quota of 5 GPUs"
    )


def test_a_smaller_run_of_the_same_user_waits_behind_the_one_that_waits_for_the_quota() -> None:
    state = with_running(ClusterState.of(HOSTS), run_of("x", "gpu-01", 4, 60.0))
    policy, large = Policy(quota=Quota(gpus=5)), Request("large", Need(gpus=2), 4.0, "ann")
    text = told(state.with_request(large), Request("small", Need(gpus=1), 5.0, "ann"), policy)
    assert text.endswith("behind large of the same user, where ann holds 4 GPUs of a quota of 5 GPUs")
    other = told(state.with_request(large), Request("other", Need(gpus=4), 6.0, "ben"), policy)
    assert "quota" not in other


def test_a_run_that_is_stopped_for_the_head_is_named() -> None:
    state = with_running(
        ClusterState.of({"a": Room(4)}), Running(Request("low", Need(cpus=3), 0.0), (Share("a", 1, 3.0),), 0.0, 86400.0)
    )
    text = told(state, Request("high", Need(cpus=4), 1.0, priority=1), Policy(preempt=True))
    assert text.endswith("the rest held by run low for about 1 min more; low stops to make room")


@pytest.mark.parametrize(
    ("need", "text"),
    [
        (Need(gpus=8, gpu_memory_gib=40), "the largest that could start is 4 GPUs with 40 GiB free on one host"),
        (Need(gpus=2, gpu_memory_gib=141), "the largest that could start is 2 GPUs with 80 GiB free on one host"),
        (Need(workers=9, gpus=1), "the largest that could start is 8 workers of 1 GPU each"),
        (Need(workers=5, gpus=1, one_host=True), "the largest that could start is 4 workers of 1 GPU each on one host"),
        (Need(cpus=100), "the largest that could start is 32 CPUs on one host"),
        (Need(gpus=1, cpus=64), "nothing like it could start"),
    ],
)
def test_what_never_fits_is_refused_with_the_largest_that_could(need: Need, text: str) -> None:
    refused = refusal(Rooms(HOSTS), Policy(), Request("me", need, 0.0))
    assert refused is not None
    assert refused.endswith(text)


def test_more_than_the_quota_is_refused() -> None:
    policy = Policy(quota=Quota(gpus=2))
    assert refusal(Rooms(HOSTS), policy, Request("me", Need(gpus=4), 0.0, "ann")) == (
        "it needs 4 GPUs on one host, 4 GPUs and 1 CPU in all, and the quota of ann is 2 GPUs"
    )


@settings(max_examples=200, deadline=None)
@given(CLUSTERS, NEEDS)
def test_the_largest_that_could_start_does(hosts: dict[str, Room], need: Need) -> None:
    rooms = Rooms(hosts)
    if fit(rooms, need) is not None:
        assert refusal(rooms, Policy(), Request("r", need, 0.0)) is None
        return
    assert refusal(rooms, Policy(), Request("r", need, 0.0))
    largest = largest_like(rooms, need)
    if largest is not None:
        assert fit(rooms, largest) is not None
        assert (largest.workers, largest.gpus, largest.cpus) <= (need.workers, need.gpus, need.cpus)
