"""What the scheduler decides on: hosts, what is free, what runs, what waits. Values; a change makes a new state.

Invariant: what is free and what is held never exceed what a host has, since both change by the same shares.

Covered: requests, runs that stop, use by user. Not covered: how a state comes about (turns.py makes one of a Ray
cluster), what becomes of a decision.
"""

from __future__ import annotations

from bisect import bisect_left, insort
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace

from cluster.control.rooms import Need, Room, Rooms, Share


@dataclass(frozen=True, slots=True)
class Request:
    """A run that wants to start. Of two with the same priority the older goes first."""

    id: str
    need: Need
    submitted_s: float
    user: str = ""
    priority: int = 0
    """The larger goes first."""
    duration_s: float | None = None
    """How long it will take, if anybody knows."""
    preemptible: bool = True
    """Whether it may be stopped for a run of higher priority, and go on later."""


@dataclass(frozen=True, slots=True)
class Running:
    """A request that has started."""

    request: Request
    shares: tuple[Share, ...]
    started_s: float
    ends_s: float
    """Expected; the policy's guess where the request says no duration."""
    stopping: bool = False
    """Whether it has been asked to make room."""


@dataclass(frozen=True, slots=True)
class Use:
    """What a user's runs hold."""

    cpus: float = 0.0
    gpus: int = 0

    def more(self, need: Need) -> Use:
        return Use(self.cpus + need.all_cpus, self.gpus + need.all_gpus)

    def less(self, need: Need) -> Use:
        return Use(self.cpus - need.all_cpus, self.gpus - need.all_gpus)


Line = tuple[int, str, Need]
"""Priority, user, need: requests that differ in nothing but their age."""


@dataclass(frozen=True, slots=True)
class Start:
    """A waiting request gets its shares now."""

    request: Request
    shares: tuple[Share, ...]
    ends_s: float
    ahead: bool = False
    """Whether it goes ahead of the head of the queue, which it does not delay."""


@dataclass(frozen=True, slots=True)
class Preempt:
    """A run is to write a checkpoint and stop, for the head of the queue."""

    run: str
    ends_s: float
    room_for: str
    """Id of the request that needs the room."""


@dataclass(frozen=True, slots=True)
class Decisions:
    """What is to be done now."""

    starts: tuple[Start, ...] = ()
    preempts: tuple[Preempt, ...] = ()
    head: str | None = None
    """Id of the request that the others must not delay."""


@dataclass(frozen=True, slots=True)
class ClusterState:
    """All that a decision depends on, besides policy and time."""

    hosts: Rooms
    """What each host has when nothing runs there."""
    rooms: Rooms
    """What is free."""
    running: Mapping[str, Running] = field(default_factory=dict)
    waiting: Mapping[Line, tuple[Request, ...]] = field(default_factory=dict)
    """Each line by age."""
    use: Mapping[str, Use] = field(default_factory=dict)
    ends: tuple[tuple[float, str], ...] = ()
    """Of all that runs, in the order of expected ends."""

    @staticmethod
    def of(hosts: Mapping[str, Room], free: Mapping[str, Room] | None = None) -> ClusterState:
        """Without runs; `free`: where others hold something, what they leave."""
        return ClusterState(Rooms(hosts), Rooms(hosts if free is None else free))

    def with_request(self, request: Request) -> ClusterState:
        """It waits behind those of its line that are older."""
        line = (request.priority, request.user, request.need)
        there = list(self.waiting.get(line, ()))
        insort(there, request, key=_age)
        return replace(self, waiting={**self.waiting, line: tuple(there)})

    def ended(self, run: str) -> ClusterState:
        """Its shares are free."""
        gone = self.running[run]
        request = gone.request
        return replace(
            self,
            rooms=self.rooms.give_back(gone.shares),
            running={name: each for name, each in self.running.items() if name != run},
            use={**self.use, request.user: self.use[request.user].less(request.need)},
            ends=_cut(self.ends, (gone.ends_s, run)),
        )

    def applied(self, decisions: Decisions, now_s: float) -> ClusterState:
        """What decisions make of it, as far as they are done at once: a preempted run holds its room until it ends."""
        running, use, ends, rooms = dict(self.running), dict(self.use), list(self.ends), self.rooms
        for start in decisions.starts:
            request = start.request
            rooms = rooms.take(start.shares)
            running[request.id] = Running(request, start.shares, now_s, start.ends_s)
            use[request.user] = use.get(request.user, Use()).more(request.need)
            insort(ends, (start.ends_s, request.id))
        for stop in decisions.preempts:
            ends.remove((running[stop.run].ends_s, stop.run))
            running[stop.run] = replace(running[stop.run], stopping=True, ends_s=stop.ends_s)
            insort(ends, (stop.ends_s, stop.run))
        waiting = _without(self.waiting, [start.request for start in decisions.starts])
        return replace(self, rooms=rooms, running=running, use=use, ends=tuple(ends), waiting=waiting)


def _age(request: Request) -> tuple[float, str]:
    return request.submitted_s, request.id


def _without(
    waiting: Mapping[Line, tuple[Request, ...]], requests: Iterable[Request]
) -> dict[Line, tuple[Request, ...]]:
    left = dict(waiting)
    for request in requests:
        line = (request.priority, request.user, request.need)
        rest = tuple(other for other in left.get(line, ()) if other.id != request.id)
        if rest:
            left[line] = rest
        else:
            left.pop(line, None)
    return left


def _cut(ends: tuple[tuple[float, str], ...], entry: tuple[float, str]) -> tuple[tuple[float, str], ...]:
    at = bisect_left(ends, entry)
    return ends[:at] + ends[at + 1 :]
