"""`decide(state, policy, now)`: which waiting runs start now, and which running ones stop for them. No I/O.

    in the order of the queue     start what fits whole; skip those whose user's quota is used up
    the first that does not fit   is the head: it gets the room that will be free first (a reservation), or, by
                                  priority, the room of runs that are stopped for it
    all behind it                 may start only where the head starts no later for it: they end before the head's
                                  time, or take what the head will not need (EASY backfill, Lifka 1995)

Invariant: the same arguments give the same decisions. What decisions take is free; a request starts whole or not at
all. By the expected ends, no request behind the head delays it.

Covered: gangs, priorities, quotas, fair share, backfill, preemption. Not covered: starting and stopping, expectations
that turn out wrong (the next decision knows more), more than one reservation.
"""

from __future__ import annotations

import heapq
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field

from cluster.control.policy import Policy, total_of
from cluster.control.rooms import Need, Room, Rooms, Share, fit, more, slots
from cluster.control.state import ClusterState, Decisions, Preempt, Request, Running, Start, Use


@dataclass(frozen=True, slots=True)
class Reservation:
    """When the head will have room, if all goes as expected."""

    starts_s: float
    rooms: Rooms
    """What will be free then, before the head takes its shares."""
    shares: tuple[Share, ...]


def decide(state: ClusterState, policy: Policy, now_s: float) -> Decisions:
    """What is to be done now."""
    return _Round(state, policy, now_s).run()


def reserve(rooms: Rooms, need: Need, ends: Iterable[tuple[float, Running]]) -> Reservation | None:
    """The first moment at which a need fits, when runs give back in the order of `ends`; None if it never does."""
    room_of: dict[str, Room] = {}
    found = 0 if need.one_host else sum(slots(room, need) * len(hosts) for room, hosts in rooms.alike())
    given: list[Share] = []
    for end_s, run in ends:
        best = 0
        for share in run.shares:
            if share.host not in rooms:
                continue
            before = room_of.get(share.host) or rooms[share.host]
            after = room_of[share.host] = more(before, share)
            best = max(best, slots(after, need))
            found += 0 if need.one_host else slots(after, need) - slots(before, need)
        given += run.shares
        if max(best, found) >= need.workers:
            then = rooms.give_back(given)
            shares = fit(then, need)
            if shares is not None:
                return Reservation(end_s, then, shares)
    return None


@dataclass
class _Round:
    """One decision in the making."""

    state: ClusterState
    policy: Policy
    now_s: float
    starts: list[Start] = field(default_factory=list)
    preempts: tuple[Preempt, ...] = ()
    head: Request | None = None
    reservation: Reservation | None = None
    reserved: bool = False
    """Whether the reservation has been looked for: that takes longest, and often nobody could use what is left."""
    tries: int = 0
    full: set[Need] = field(default_factory=set)
    """Needs that do not fit: what is free only shrinks in a round."""
    used_up: set[str] = field(default_factory=set)
    """Users whose first run waits for their quota: a smaller one behind it would take what it waits for."""

    def run(self) -> Decisions:
        self.rooms, self.use, self.total = self.state.rooms, dict(self.state.use), total_of(self.state.hosts)
        for request in self._in_order():
            if self.head is None:
                self._first(request)
            elif self.tries >= self.policy.backfill_tries:
                break
            else:
                self._behind_the_head(request)
        return Decisions(tuple(self.starts), self.preempts, self.head.id if self.head else None)

    def _in_order(self) -> Iterator[Request]:
        """Those that their quota lets start. A line whose first does not start is left for this round."""
        heap = [(self._rank(line[0]), number, line, 0) for number, line in enumerate(self.state.waiting.values())]
        heapq.heapify(heap)
        while heap:
            rank, number, line, at = heapq.heappop(heap)
            request = line[at]
            if self.policy.fair and (now := self._rank(request)) > rank:  # its user has got something meanwhile
                heapq.heappush(heap, (now, number, line, at))
                continue
            if request.need in self.full or request.user in self.used_up:
                continue
            if not self.policy.may_start(request, self.use):
                if self.policy.may_start(request, {}) and fit(self.state.hosts, request.need) is not None:
                    self.used_up.add(request.user)
                continue
            before = len(self.starts)
            yield request
            if len(self.starts) > before and at + 1 < len(line):
                heapq.heappush(heap, (self._rank(line[at + 1]), number, line, at + 1))

    def _rank(self, request: Request) -> tuple[float, float, float, str]:
        share = self.policy.share(request.user, self.use, self.total)
        return self.policy.rank(request, share, self.now_s)

    def _first(self, request: Request) -> None:
        shares = fit(self.rooms, request.need)
        if shares is not None:
            self._start(request, shares)
            return
        self.full.add(request.need)
        if fit(self.state.hosts, request.need) is not None:  # one that never fits holds up nobody
            self.head = request
            self.preempts = self._make_room(request) if self.policy.preempt else ()

    def _behind_the_head(self, request: Request) -> None:
        self.tries += 1
        shares = fit(self.rooms, request.need)
        if shares is None:
            self.full.add(request.need)
            return
        allowed = self._without_delay(request, shares)
        if allowed is not None:
            self._start(request, allowed)

    def _without_delay(self, request: Request, shares: tuple[Share, ...]) -> tuple[Share, ...] | None:
        """Where it may start without delaying the head, or None."""
        kept = self._reservation()
        if kept is None or self.now_s + self.policy.expected_s(request) <= kept.starts_s:
            return shares
        assert self.head is not None
        if request.user == self.head.user and not self.policy.may_start(self.head, self._use_with(request)):
            return None
        outside = fit(self.rooms.without({share.host for share in kept.shares}), request.need)
        return next((each for each in (outside, shares) if each is not None and self._leaves_room(each, kept)), None)

    def _use_with(self, request: Request) -> dict[str, Use]:
        return {**self.use, request.user: self.use.get(request.user, Use()).more(request.need)}

    def _leaves_room(self, shares: tuple[Share, ...], kept: Reservation) -> bool:
        """Whether the head keeps its places when these are held at its time."""
        assert self.head is not None
        reserved = {share.host: share.workers for share in kept.shares}
        then = kept.rooms.take(shares)
        return all(
            slots(then[share.host], self.head.need) >= reserved[share.host]
            for share in shares
            if share.host in reserved
        )

    def _reservation(self) -> Reservation | None:
        if not self.reserved:
            assert self.head is not None
            self.reserved = True
            self.reservation = reserve(self.rooms, self.head.need, self._ends())
        return self.reservation

    def _ends(self) -> list[tuple[float, Running]]:
        """What runs, by expected end, with what this round has started and what it stops."""
        running = self.state.running
        started = [
            (start.ends_s, Running(start.request, start.shares, self.now_s, start.ends_s)) for start in self.starts
        ]
        stopped = {stop.run: stop.ends_s for stop in self.preempts}
        there = [(stopped.get(run, end_s), running[run]) for end_s, run in self.state.ends]
        ends = [(max(end_s, self.now_s), run) for end_s, run in (*there, *started)]
        return sorted(ends, key=lambda each: each[0]) if started or stopped else ends

    def _start(self, request: Request, shares: tuple[Share, ...]) -> None:
        self.rooms = self.rooms.take(shares)
        if self.reservation is not None:
            self._hold(request, shares, self.reservation)
        self.use = self._use_with(request)
        ends_s = self.now_s + self.policy.expected_s(request)
        self.starts.append(Start(request, shares, ends_s, ahead=self.head is not None))

    def _hold(self, request: Request, shares: tuple[Share, ...], kept: Reservation) -> None:
        """What is started now is not free at the head's time, unless it has ended by then."""
        if self.now_s + self.policy.expected_s(request) > kept.starts_s:
            self.reservation = Reservation(kept.starts_s, kept.rooms.take(shares), kept.shares)

    def _may_stop(self, run: Request, head: Request) -> bool:
        """Whether it would not go ahead of the head again as soon as it has stopped."""
        standing = self.policy.standing(run, self.now_s) < self.policy.standing(head, self.now_s)
        return run.preemptible and run.priority < head.priority and standing

    def _make_room(self, head: Request) -> tuple[Preempt, ...]:
        """Runs of lower priority whose end lets the head start: the lowest first, of those the youngest; none if all
        of them would not do, or if what stops already does."""
        stopping = [(run.ends_s, run) for run in self.state.running.values() if run.stopping]
        if reserve(self.rooms, head.need, stopping) is not None:
            return ()
        rooms = self.rooms.give_back([share for _, run in stopping for share in run.shares])
        victims = sorted(
            (run for run in self.state.running.values() if self._may_stop(run.request, head) and not run.stopping),
            key=lambda run: (run.request.priority, -run.started_s, run.request.id),
        )
        enough = reserve(rooms, head.need, ((number, run) for number, run in enumerate(victims)))
        if enough is None:
            return ()
        hosts = {share.host for share in enough.shares}
        useful = [run for run in victims[: int(enough.starts_s) + 1] if any(s.host in hosts for s in run.shares)]
        ends_s = self.now_s + self.policy.stop_s
        return tuple(Preempt(run.request.id, ends_s, head.id) for run in _fewest(rooms, head.need, useful))


def _fewest(rooms: Rooms, need: Need, victims: list[Running]) -> list[Running]:
    """Without those that are not needed: the highest and oldest are spared first."""
    kept = list(victims)
    for run in reversed(victims):
        rest = [other for other in kept if other is not run]
        if fit(rooms.give_back([share for other in rest for share in other.shares]), need) is not None:
            kept = rest
    return kept
