"""Who goes first, and how much each may hold: configuration of the scheduler as values.

    order = priority (plus one for each `aging_s` of waiting), then the user's fair share, then age

Covered: quotas, fair share by dominant resource (Ghodsi et al., NSDI 2011), aging. Not covered: where it is written.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from cluster.control.rooms import Rooms
from cluster.control.state import Request, Use


@dataclass(frozen=True, slots=True)
class Quota:
    """What a user's runs hold at most at the same time; None: no limit."""

    cpus: float | None = None
    gpus: int | None = None

    def allows(self, use: Use) -> bool:
        return (self.cpus is None or use.cpus <= self.cpus) and (self.gpus is None or use.gpus <= self.gpus)


@dataclass(frozen=True, slots=True)
class Policy:
    """How a cluster is shared."""

    quotas: Mapping[str, Quota] = field(default_factory=dict)
    """By user."""
    quota: Quota = Quota()
    """Of a user who is not named."""
    fair: bool = False
    """Of equal priorities, the user goes first who holds least."""
    weights: Mapping[str, float] = field(default_factory=dict)
    """How much more than others a user may hold and still be level with them; 1 where none is given."""
    aging_s: float | None = 24 * 3600.0
    """So long a wait counts as one step of priority: nothing waits for ever. None: priorities are strict."""
    preempt: bool = False
    """Whether runs of lower priority are stopped for the head of the queue."""
    stop_s: float = 60.0
    """How long a preempted run may take to write its checkpoint."""
    backfill_tries: int = 200
    """How many different lines of waiting runs are tried behind the head in a decision; 0: strictly in order."""
    duration_s: float = 24 * 3600.0
    """What is expected of a run whose duration nobody knows."""

    def quota_of(self, user: str) -> Quota:
        return self.quotas.get(user, self.quota)

    def may_start(self, request: Request, use: Mapping[str, Use]) -> bool:
        """Whether its user's quota has room for it."""
        return self.quota_of(request.user).allows(use.get(request.user, Use()).more(request.need))

    def expected_s(self, request: Request) -> float:
        return self.duration_s if request.duration_s is None else request.duration_s

    def rank(self, request: Request, share: float, now_s: float) -> tuple[float, float, float, str]:
        """The smallest goes first. `share`: the user's, 0 where shares do not count."""
        return -self.standing(request, now_s), share, request.submitted_s, request.id

    def standing(self, request: Request, now_s: float) -> float:
        """Priority with what waiting has added to it."""
        aged = 0.0 if self.aging_s is None else max(0.0, now_s - request.submitted_s) // self.aging_s
        return request.priority + aged

    def share(self, user: str, use: Mapping[str, Use], total: Use) -> float:
        """The largest part of any resource that a user holds, by weight; 0 unless `fair`."""
        held = use.get(user)
        if not self.fair or held is None:
            return 0.0
        most = max(held.cpus / total.cpus if total.cpus else 0.0, held.gpus / total.gpus if total.gpus else 0.0)
        return most / self.weights.get(user, 1.0)


def total_of(hosts: Rooms) -> Use:
    """All that the hosts have."""
    alike = list(hosts.alike())
    return Use(
        sum(room.cpus * len(names) for room, names in alike), sum(len(room.gpus) * len(names) for room, names in alike)
    )
