"""What is free on the hosts, and where a request fits: all of its workers or none.

    fit(rooms, need) -> shares       one host where one suffices, else the fewest; of those the tightest

Invariant: `Rooms` never changes; what is taken and given back makes a new one. Hosts with the same room are one entry,
so that a search costs as many steps as there are different rooms, not hosts.

Best fit: a request gets the GPUs with the least free memory that suffices, then the host with the fewest GPUs left,
then the fewest CPUs: large GPUs and whole hosts stay free for those who need them.

Covered: CPUs, whole GPUs, free memory of each. Not covered: which of a host's GPUs it is (Ray assigns them), a GPU that
several requests share, topology between hosts.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import NamedTuple

CPU_DIGITS = 4  # Ray's own resolution of a resource


class Room(NamedTuple):
    """What is free on a host. A tuple: it is compared and hashed some hundred times in a decision."""

    cpus: float
    gpus: tuple[float, ...] = ()
    """Free GiB of each GPU that no run holds, in ascending order."""


@dataclass(frozen=True, slots=True)
class Need:
    """What a run must have before it starts."""

    workers: int = 1
    cpus: float = 1.0
    """Of each worker, as the next two."""
    gpus: int = 0
    gpu_memory_gib: float = 0.0
    """Free on each GPU."""
    one_host: bool = False
    """All workers on one host."""

    @property
    def all_cpus(self) -> float:
        return self.workers * self.cpus

    @property
    def all_gpus(self) -> int:
        return self.workers * self.gpus


@dataclass(frozen=True, slots=True)
class Share:
    """What a run holds on one host."""

    host: str
    workers: int
    cpus: float
    gpus: tuple[float, ...] = ()
    """GiB that were free on each when it was given away."""


class Rooms:
    """Room of every host. Immutable."""

    __slots__ = ("_by_room", "_of", "fits")

    def __init__(self, of: Mapping[str, Room]) -> None:
        self.fits: dict[Need, tuple[Share, ...] | None] = {}
        """What `fit` has found here: it always finds the same."""
        self._of = dict(of)
        alike: dict[Room, list[str]] = {}
        for host in sorted(self._of):
            alike.setdefault(self._of[host], []).append(host)
        self._by_room = {room: tuple(hosts) for room, hosts in alike.items()}

    def __getitem__(self, host: str) -> Room:
        return self._of[host]

    def __contains__(self, host: str) -> bool:
        return host in self._of

    def __iter__(self) -> Iterator[str]:
        return iter(self._of)

    def alike(self) -> Iterator[tuple[Room, tuple[str, ...]]]:
        """Each different room with the hosts that have it, by name."""
        return iter(self._by_room.items())

    def without(self, hosts: Iterable[str]) -> Rooms:
        """As if those hosts were not there."""
        return self._changed(dict.fromkeys(hosts))

    def take(self, shares: Iterable[Share]) -> Rooms:
        """After a run has got its shares."""
        return self._changed({share.host: _less(self._of[share.host], share) for share in shares})

    def give_back(self, shares: Iterable[Share]) -> Rooms:
        """After runs have ended; a host that is gone gets nothing."""
        to: dict[str, Room] = {}
        for share in shares:
            if share.host in self._of:
                to[share.host] = more(to.get(share.host) or self._of[share.host], share)
        return self._changed(to)

    def _changed(self, to: Mapping[str, Room | None]) -> Rooms:
        made = Rooms.__new__(Rooms)
        made.fits = {}
        made._of, made._by_room = self._of.copy(), self._by_room.copy()
        for host, room in to.items():
            made._move(host, room)
        return made

    def _move(self, host: str, room: Room | None) -> None:
        before = self._of.pop(host)
        names = self._by_room.pop(before)
        at = bisect_left(names, host)
        if len(names) > 1:
            self._by_room[before] = names[:at] + names[at + 1 :]
        if room is not None:
            self._of[host] = room
            names = self._by_room.get(room, ())
            at = bisect_left(names, host)
            self._by_room[room] = (*names[:at], host, *names[at:])


def slots(room: Room, need: Need) -> int:
    """How many of the need's workers a host takes."""
    by_cpus = int(room.cpus / need.cpus + 1e-6) if need.cpus else need.workers
    found = by_cpus if by_cpus < need.workers else need.workers
    if not need.gpus or not found:
        return found
    by_gpus = (len(room.gpus) - bisect_left(room.gpus, need.gpu_memory_gib)) // need.gpus
    return by_gpus if by_gpus < found else found


def fit(rooms: Rooms, need: Need) -> tuple[Share, ...] | None:
    """Where all workers of a need go, or None."""
    if need not in rooms.fits:
        rooms.fits[need] = _fit(rooms, need)
    return rooms.fits[need]


def _fit(rooms: Rooms, need: Need) -> tuple[Share, ...] | None:
    found = [(slots(room, need), room, hosts) for room, hosts in rooms.alike()]
    whole = [(_cost(room, need, need.workers), room, hosts[0]) for count, room, hosts in found if count >= need.workers]
    if whole:
        _, room, host = min(whole)
        return (_share(room, host, need, need.workers),)
    if need.one_host or sum(count * len(hosts) for count, _, hosts in found) < need.workers:
        return None
    return _spread([each for each in found if each[0]], need)


def _spread(found: list[tuple[int, Room, tuple[str, ...]]], need: Need) -> tuple[Share, ...]:
    """Over the hosts that take most; the rest of the workers goes where they fit best."""
    shares: list[Share] = []
    left, unused = need.workers, dict.fromkeys(host for _, _, hosts in found for host in hosts)
    in_order = sorted(found, key=lambda each: (-each[0], _cost(each[1], need, each[0])))
    for count, room, host in ((count, room, host) for count, room, hosts in in_order for host in hosts):
        if left < count:
            break
        shares.append(_share(room, host, need, count))
        del unused[host]
        left -= count
    if left:
        rest = [
            (_cost(room, need, left), room, host)
            for count, room, hosts in found
            if count >= left
            for host in hosts
            if host in unused
        ]
        _, room, host = min(rest)
        shares.append(_share(room, host, need, left))
    return tuple(shares)


def _cost(room: Room, need: Need, workers: int) -> tuple[float, int, float, tuple[float, ...]]:
    """The less the better: memory of the GPUs that it would take, GPUs and CPUs that it would leave."""
    taken = _taken(room, need, workers)
    return sum(taken), len(room.gpus) - len(taken), room.cpus, room.gpus


def _taken(room: Room, need: Need, workers: int) -> tuple[float, ...]:
    first = bisect_left(room.gpus, need.gpu_memory_gib)
    return room.gpus[first : first + workers * need.gpus] if need.gpus else ()


def _share(room: Room, host: str, need: Need, workers: int) -> Share:
    return Share(host, workers, round(workers * need.cpus, CPU_DIGITS), _taken(room, need, workers))


def _less(room: Room, share: Share) -> Room:
    gpus = list(room.gpus)
    for gpu in share.gpus:
        gpus.remove(gpu)
    return Room(round(room.cpus - share.cpus, CPU_DIGITS), tuple(gpus))


def more(room: Room, share: Share) -> Room:
    """With what a share has given back."""
    return Room(round(room.cpus + share.cpus, CPU_DIGITS), tuple(sorted((*room.gpus, *share.gpus))))
