"""The scheduler keeps its promises in any state: drawn clusters, drawn requests, every decision checked."""

from __future__ import annotations

import itertools
from collections.abc import Iterator

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from benchmarks.cluster.simulate import Simulation, arrivals_of, by_policy, hosts_of
from cluster.control.policy import Policy, Quota
from cluster.control.rooms import Need, Room, Rooms, fit, slots
from cluster.control.scheduler import decide, reserve
from cluster.control.state import ClusterState, Decisions, Request, Running, Share, Start, Use

ROOMS = st.builds(
    lambda cpus, gpus: Room(float(cpus), tuple(sorted(gpus))),
    st.integers(0, 8),
    st.lists(st.sampled_from([16.0, 40.0, 80.0]), max_size=4),
)
NEEDS = st.builds(
    Need,
    workers=st.integers(1, 4),
    cpus=st.sampled_from([0.0, 0.5, 1.0, 3.0]),
    gpus=st.integers(0, 2),
    gpu_memory_gib=st.sampled_from([0.0, 30.0, 70.0]),
    one_host=st.booleans(),
).filter(lambda need: need.cpus > 0 or need.gpus > 0)
POLICIES = st.builds(
    Policy,
    fair=st.booleans(),
    preempt=st.booleans(),
    aging_s=st.sampled_from([None, 10.0]),
    quota=st.sampled_from([Quota(), Quota(cpus=6.0), Quota(gpus=2)]),
    backfill_tries=st.sampled_from([0, 1, 200]),
)
CLUSTERS = st.lists(ROOMS, min_size=1, max_size=4).map(lambda rooms: {f"h{i}": room for i, room in enumerate(rooms)})


@st.composite
def requests(draw: st.DrawFn) -> list[Request]:
    return [
        Request(
            f"r{number}",
            draw(NEEDS),
            float(number),
            user=draw(st.sampled_from(["ann", "ben"])),
            priority=draw(st.integers(0, 2)),
            duration_s=draw(st.sampled_from([1.0, 5.0, 20.0])),
            preemptible=draw(st.booleans()),
        )
        for number in range(draw(st.integers(1, 12)))
    ]


def life(
    hosts: dict[str, Room], asked: list[Request], policy: Policy
) -> Iterator[tuple[ClusterState, Decisions, float]]:
    """One request a second, each running as long as expected: the state before each decision, and the decision."""
    state, now_s, left = ClusterState.of(hosts), 0.0, list(asked)
    for _ in range(400):
        if left and left[0].submitted_s <= now_s:
            state = state.with_request(left.pop(0))
        while state.ends and state.ends[0][0] <= now_s:
            gone = state.running[state.ends[0][1]]
            state = state.ended(gone.request.id)
            if gone.stopping:
                state = state.with_request(gone.request)
        decisions = decide(state, policy, now_s)
        yield state, decisions, now_s
        state = state.applied(decisions, now_s)
        if not left and not state.running and not decisions.starts:
            return
        now_s += 1.0
    raise AssertionError("it does not come to an end")


@settings(max_examples=50, deadline=None)
@given(CLUSTERS, requests(), POLICIES)
def test_what_starts_is_whole_and_free_and_within_its_quota(
    hosts: dict[str, Room], asked: list[Request], policy: Policy
) -> None:
    for state, decisions, now_s in life(hosts, asked, policy):
        assert decide(state, policy, now_s) == decisions
        for start in decisions.starts:
            need = start.request.need
            assert sum(share.workers for share in start.shares) == need.workers
            assert len({share.host for share in start.shares}) == len(start.shares)
            assert not (need.one_host and len(start.shares) > 1)
            for share in start.shares:
                assert share.cpus == pytest.approx(share.workers * need.cpus)
                assert len(share.gpus) == share.workers * need.gpus
                assert all(gpu >= need.gpu_memory_gib for gpu in share.gpus)
        after = state.applied(decisions, now_s)  # taking a GPU that is not free raises ValueError
        for host, room in hosts.items():
            held = [share for run in after.running.values() for share in run.shares if share.host == host]
            assert after.rooms[host].cpus >= 0
            assert after.rooms[host].cpus + sum(share.cpus for share in held) == pytest.approx(room.cpus)
            gpus = [*after.rooms[host].gpus, *itertools.chain.from_iterable(share.gpus for share in held)]
            assert tuple(sorted(gpus)) == room.gpus
        assert all(policy.quota_of(user).allows(use) for user, use in after.use.items())


@settings(max_examples=50, deadline=None)
@given(CLUSTERS, requests(), POLICIES)
def test_every_run_that_can_start_does_and_no_room_lies_idle(
    hosts: dict[str, Room], asked: list[Request], policy: Policy
) -> None:
    started, whole = set(), Rooms(hosts)
    for state, decisions, now_s in life(hosts, asked, policy):
        started |= {start.request.id for start in decisions.starts}
        after = state.applied(decisions, now_s)
        if decisions.head is None:
            waiting = [request for line in after.waiting.values() for request in line]
            used_up = {
                each.user
                for each in waiting
                if not policy.may_start(each, after.use) and policy.may_start(each, {}) and fit(whole, each.need)
            }
            waiting = [each for each in waiting if policy.may_start(each, after.use)]
            assert not [each for each in waiting if each.user not in used_up and fit(after.rooms, each.need)]
    assert started == {
        each.id for each in asked if fit(whole, each.need) and policy.quota_of(each.user).allows(Use().more(each.need))
    }


@settings(max_examples=100, deadline=None)
@given(CLUSTERS, requests(), POLICIES)
def test_nobody_who_starts_ahead_of_the_head_delays_it(
    hosts: dict[str, Room], asked: list[Request], policy: Policy
) -> None:
    for state, decisions, now_s in life(hosts, asked, policy):
        ahead = [start for start in decisions.starts if start.ahead]
        if not ahead or decisions.preempts:
            continue
        in_order = Decisions(tuple(start for start in decisions.starts if not start.ahead))
        head = next(each for line in state.waiting.values() for each in line if each.id == decisions.head)
        without = head_starts(state.applied(in_order, now_s), head, now_s)
        assert head_starts(state.applied(decisions, now_s), head, now_s) <= without
        longer = [start.request for start in ahead if start.ends_s > without and start.request.user == head.user]
        use = state.applied(in_order, now_s).use.get(head.user, Use())
        for request in [*longer, head]:
            use = use.more(request.need)
        assert not longer or policy.quota_of(head.user).allows(use)


def head_starts(state: ClusterState, head: Request, now_s: float) -> float:
    kept = reserve(state.rooms, head.need, ((max(end_s, now_s), state.running[run]) for end_s, run in state.ends))
    assert kept is not None
    return kept.starts_s


@settings(max_examples=50, deadline=None)
@given(CLUSTERS, requests())
def test_without_backfill_nobody_overtakes(hosts: dict[str, Room], asked: list[Request]) -> None:
    policy = Policy(backfill_tries=0, aging_s=None)
    for state, decisions, _ in life(hosts, asked, policy):
        waiting = [each for line in state.waiting.values() for each in line if fit(state.hosts, each.need)]
        in_order = sorted(waiting, key=lambda each: (-each.priority, each.submitted_s))
        assert [start.request for start in decisions.starts] == in_order[: len(decisions.starts)]


@settings(max_examples=50, deadline=None)
@given(CLUSTERS, requests())
def test_no_run_is_stopped_in_vain(hosts: dict[str, Room], asked: list[Request]) -> None:
    policy = Policy(preempt=True, stop_s=2.0)
    for state, decisions, now_s in life(hosts, asked, policy):
        if not decisions.preempts:
            continue
        head = next(each for line in state.waiting.values() for each in line if each.id == decisions.head)
        after = state.applied(decisions, now_s)
        stopping = [run for run in after.running.values() if run.stopping]
        chosen = [after.running[stop.run] for stop in decisions.preempts]
        assert all(run.request.priority < head.priority and run.request.preemptible for run in chosen)
        in_order = state.applied(Decisions(tuple(s for s in decisions.starts if not s.ahead)), now_s)
        assert fit(in_order.rooms.give_back(shares_of(stopping)), head.need)
        for spared in chosen:
            rest = [run for run in stopping if run.request.id != spared.request.id]
            assert not fit(in_order.rooms.give_back(shares_of(rest)), head.need)


def shares_of(runs: list[Running]) -> list[Share]:
    return [share for run in runs for share in run.shares]


def with_running(state: ClusterState, run: Running) -> ClusterState:
    """A run that takes its shares from what is free."""
    return state.applied(Decisions((Start(run.request, run.shares, run.ends_s),)), run.started_s)


def test_best_fit_keeps_large_gpus_and_whole_hosts_free() -> None:
    rooms = Rooms({"a": Room(64, (80.0,) * 8), "b": Room(64, (40.0,) * 8), "c": Room(64, (40.0,) * 3)})
    assert fit(rooms, Need(gpus=2, gpu_memory_gib=30)) == (Share("c", 1, 1.0, (40.0, 40.0)),)
    assert fit(rooms, Need(gpus=4, gpu_memory_gib=30)) == (Share("b", 1, 1.0, (40.0,) * 4),)
    assert fit(rooms, Need(gpus=1, gpu_memory_gib=60)) == (Share("a", 1, 1.0, (80.0,)),)
    assert [share.host for share in fit(rooms, Need(workers=12, gpus=1)) or ()] == ["b", "a"]  # whole, then the rest
    assert slots(rooms["c"], Need(workers=9, gpus=2)) == 1


def test_a_low_priority_ages_into_its_turn() -> None:
    state = ClusterState.of({"a": Room(1)}).with_request(Request("old", Need(), 0.0))
    state = state.with_request(Request("new", Need(), 90.0, priority=1))
    assert [start.request.id for start in decide(state, Policy(aging_s=None), 101.0).starts] == ["new"]
    assert [start.request.id for start in decide(state, Policy(aging_s=50.0), 101.0).starts] == ["old"]


def test_fair_share_goes_to_the_one_who_holds_least_by_weight() -> None:
    state = ClusterState.of({"a": Room(6)})
    for number in range(6):
        state = state.with_request(Request(f"ann-{number}", Need(), 0.0, "ann"))
        state = state.with_request(Request(f"ben-{number}", Need(), 1.0, "ben"))
    first = [start.request.user for start in decide(state, Policy(), 2.0).starts]
    assert first == ["ann"] * 6
    level = [start.request.user for start in decide(state, Policy(fair=True), 2.0).starts]
    assert sorted(level) == ["ann"] * 3 + ["ben"] * 3
    heavy = decide(state, Policy(fair=True, weights={"ann": 2.0}), 2.0).starts
    assert sorted(start.request.user for start in heavy) == ["ann"] * 4 + ["ben"] * 2


def test_a_run_that_others_took_into_account_is_seen_in_what_is_free() -> None:
    held = Running(Request("x", Need(cpus=3), 0.0), (Share("a", 1, 3.0),), 0.0, 60.0)
    state = with_running(ClusterState.of({"a": Room(4)}), held).with_request(Request("y", Need(cpus=2), 1.0))
    assert decide(state, Policy(), 2.0) == Decisions(head="y")
    start = Start(Request("y", Need(cpus=2), 1.0), (Share("a", 1, 2.0),), 61.0 + Policy().duration_s)
    assert decide(state.ended("x"), Policy(), 61.0).starts == (start,)


def test_the_same_code_in_a_small_simulation_starts_every_run() -> None:
    hosts = hosts_of(120)
    simulation = Simulation(hosts, arrivals_of(1500, hosts, seed=5), by_policy(Policy(fair=True)))
    outcome = simulation.run()
    figures = simulation.figures()
    assert figures["never_started"] == 0
    assert figures["ahead"] > 0
    assert figures["gpu_utilization"] > 0.5
    assert len(outcome.decisions_s) == 3000
