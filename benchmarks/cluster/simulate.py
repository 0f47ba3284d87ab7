"""A seeded discrete-event simulation of a cluster's life: the scheduler's own code, simulated hosts, runs and clock.

Invariant: the same seed gives the same arrivals, durations and decisions.

Covered: arrivals, ends, estimates that are too long, as people's are (one to three times what a run takes). Not
covered: hosts that fail, the time that starting takes.
"""

from __future__ import annotations

import heapq
import random
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass, field

from cluster.control.policy import Policy, total_of
from cluster.control.reasons import refusal
from cluster.control.rooms import Need, Room, fit
from cluster.control.scheduler import decide
from cluster.control.state import ClusterState, Decisions, Request, Start

KINDS = (  # of 20 hosts; CPUs, GPUs, GiB of each
    (6, Room(96, (80.0,) * 8)),
    (6, Room(64, (40.0,) * 8)),
    (4, Room(32, (24.0,) * 4)),
    (4, Room(64)),
)
NEEDS = (  # how often, what: most runs are small, most of the GPU time is in few large ones
    (22, Need(1, 4)),
    (6, Need(1, 32)),
    (24, Need(1, 4, 1, 16)),
    (12, Need(1, 8, 1, 60)),
    (10, Need(2, 4, 1, 16)),
    (8, Need(4, 4, 1, 30, one_host=True)),
    (5, Need(8, 8, 1, 30, one_host=True)),
    (5, Need(8, 8, 1, 60, one_host=True)),
    (4, Need(16, 4, 1, 30)),
    (3, Need(4, 64, 8, 60)),
    (1, Need(16, 48, 8, 30)),
)
PRIORITIES = ((80, 0), (15, 1), (5, 2))
USERS = 60
MEDIAN_S, SIGMA, LONGEST_S = 20 * 60.0, 1.4, 24 * 3600.0
LOAD = 0.92  # GPU time asked for, of what there is
WARM_UP = 0.2  # of the arrivals, before the cluster is as full as it gets
RAY_TRAIN_WAIT_S = 60.0  # RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S of Ray 2.60
Decide = Callable[[ClusterState, float], Decisions]


@dataclass(frozen=True)
class Arrival:
    """A run as the world knows it: the scheduler sees its request alone."""

    request: Request
    duration_s: float


def hosts_of(count: int) -> dict[str, Room]:
    """A cluster of four kinds of hosts."""
    rooms = [room for number, room in KINDS for _ in range(number)]
    return {f"host-{number:04d}": rooms[number % len(rooms)] for number in range(count)}


def arrivals_of(count: int, hosts: dict[str, Room], seed: int) -> list[Arrival]:
    """Runs that come at random, as many as make `LOAD`."""
    draw = random.Random(seed)
    runs = [_draw(number, draw) for number in range(count)]
    whole = ClusterState.of(hosts).hosts  # a small cluster refuses the largest of them at once
    runs = [run for run in runs if refusal(whole, Policy(), run.request) is None]
    gpus = sum(len(room.gpus) for room in hosts.values())
    asked_gpu_s = sum(run.request.need.all_gpus * run.duration_s for run in runs)
    gap_s, now_s, arrivals = asked_gpu_s / (LOAD * gpus) / len(runs), 0.0, []
    for run in runs:
        now_s += draw.expovariate(1 / gap_s)
        arrivals.append(Arrival(_at(run.request, now_s), run.duration_s))
    return arrivals


def _draw(number: int, draw: random.Random) -> Arrival:
    need = draw.choices([need for _, need in NEEDS], [weight for weight, _ in NEEDS])[0]
    priority = draw.choices([value for _, value in PRIORITIES], [weight for weight, _ in PRIORITIES])[0]
    user = f"user-{min(USERS - 1, int(draw.paretovariate(0.8))):02d}"
    duration_s = min(LONGEST_S, MEDIAN_S * draw.lognormvariate(0.0, SIGMA))
    return Arrival(Request(f"run-{number:06d}", need, 0.0, user, priority, duration_s * draw.uniform(1, 3)), duration_s)


def _at(request: Request, now_s: float) -> Request:
    return Request(request.id, request.need, now_s, request.user, request.priority, request.duration_s)


@dataclass
class Outcome:
    """What became of all runs."""

    waits_s: dict[str, float] = field(default_factory=dict)
    decisions_s: list[float] = field(default_factory=list)
    """CPU time of each: the clock on the wall where nothing else runs."""
    held_gpu_s: float = 0.0
    """In the time after the warm-up until the last arrival."""
    longest_queue: int = 0
    ahead: int = 0
    """Runs that started ahead of the head of the queue."""
    ended_s: float = 0.0


@dataclass
class Simulation:
    """One policy's way through the same arrivals."""

    hosts: dict[str, Room]
    arrivals: list[Arrival]
    decide: Decide
    outcome: Outcome = field(default_factory=Outcome)

    def run(self) -> Outcome:
        """Until the last run has ended."""
        self._state = ClusterState.of(self.hosts)
        self._duration_s = {run.request.id: run.duration_s for run in self.arrivals}
        self._from_s = self.arrivals[int(len(self.arrivals) * WARM_UP)].request.submitted_s
        self._to_s = self.arrivals[-1].request.submitted_s
        ends: list[tuple[float, str]] = []
        coming, waiting = iter(self.arrivals), 0
        following = next(coming, None)
        while following is not None or ends:
            if following is not None and (not ends or following.request.submitted_s <= ends[0][0]):
                now_s = following.request.submitted_s
                self._state = self._state.with_request(following.request)
                following, waiting = next(coming, None), waiting + 1
            else:
                now_s, ended = heapq.heappop(ends)
                self._state = self._state.ended(ended)
            started = self._step(now_s)
            waiting -= len(started)
            self.outcome.longest_queue = max(self.outcome.longest_queue, waiting)
            for request in started:
                heapq.heappush(ends, (now_s + self._duration_s[request.id], request.id))
            self.outcome.ended_s = now_s
        return self.outcome

    def _step(self, now_s: float) -> list[Request]:
        before_s = time.thread_time()
        decisions = self.decide(self._state, now_s)
        self.outcome.decisions_s.append(time.thread_time() - before_s)
        self._state = self._state.applied(decisions, now_s)
        for start in decisions.starts:
            request = start.request
            self.outcome.waits_s[request.id] = now_s - request.submitted_s
            self.outcome.ahead += start.ahead
            end_s = now_s + self._duration_s[request.id]
            counted_s = max(0.0, min(end_s, self._to_s) - max(now_s, self._from_s))
            self.outcome.held_gpu_s += counted_s * request.need.all_gpus
        return [start.request for start in decisions.starts]

    def figures(self) -> dict[str, float]:
        """What the README shows."""
        outcome, needs = self.outcome, {run.request.id: run.request.need for run in self.arrivals}
        gpus = total_of(ClusterState.of(self.hosts).hosts).gpus
        waits = sorted(outcome.waits_s.values())
        large = sorted(wait for run, wait in outcome.waits_s.items() if needs[run].all_gpus >= 32)
        decisions_ms = sorted(1e3 * each for each in outcome.decisions_s)
        return {
            "runs": len(self.arrivals),
            "never_started": len(self.arrivals) - len(waits),
            "gpu_utilization": outcome.held_gpu_s / (gpus * (self._to_s - self._from_s)),
            "wait_min_mean": statistics.fmean(waits) / 60,
            "wait_min_p50": quantile(waits, 0.5) / 60,
            "wait_min_p99": quantile(waits, 0.99) / 60,
            "wait_min_max": waits[-1] / 60,
            "large_wait_min_mean": statistics.fmean(large) / 60,
            "large_wait_min_max": large[-1] / 60,
            "waited_over_60_s": sum(wait > RAY_TRAIN_WAIT_S for wait in waits) / len(waits),
            "ahead": outcome.ahead,
            "longest_queue": outcome.longest_queue,
            "last_end_h": outcome.ended_s / 3600,
            "decision_ms_p50": quantile(decisions_ms, 0.5),
            "decision_ms_p99": quantile(decisions_ms, 0.99),
            "decision_ms_max": decisions_ms[-1],
        }


def quantile(ordered: list[float], part: float) -> float:
    return ordered[min(len(ordered) - 1, int(part * len(ordered)))]


def by_policy(policy: Policy) -> Decide:
    """The scheduler."""
    return lambda state, now_s: decide(state, policy, now_s)


def start_at_once(seed: int) -> Decide:
    """What placement groups do that nobody orders: whoever asks when there is room has it, in any order."""
    draw = random.Random(seed)

    def decide_now(state: ClusterState, now_s: float) -> Decisions:
        rooms, starts, lines = state.rooms, [], list(state.waiting.values())
        draw.shuffle(lines)
        full: set[Need] = set()
        for request in (request for line in lines for request in line):
            shares = None if request.need in full else fit(rooms, request.need)
            if shares is None:
                full.add(request.need)
                continue
            rooms = rooms.take(shares)
            starts.append(Start(request, shares, now_s))
        return Decisions(tuple(starts))

    return decide_now
