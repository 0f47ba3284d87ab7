"""Why a run waits, in words, and whether it ever could start: pure functions of the scheduler's state.

Covered: the head of the queue, those behind it, quotas, needs that no host has. Not covered: anything that changes a
decision.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

from cluster.control.policy import Policy
from cluster.control.rooms import Need, Room, Rooms, fit, slots
from cluster.control.state import ClusterState, Decisions, Request, Running, Use

MINUTE_S, HOUR_S = 60.0, 3600.0
LIMIT = 1 << 16  # no cluster has more workers


def words_of(need: Need) -> str:
    """`2 workers with 4 GPUs of 40 GiB free each on one host`."""
    if need.gpus:
        each = _counted(need.gpus, "GPU") + (f" with {need.gpu_memory_gib:g} GiB free" if need.gpu_memory_gib else "")
    else:
        each = _counted(need.cpus, "CPU")
    text = each if need.workers == 1 else f"{need.workers} workers of {each} each"
    return f"{text} on one host" if need.one_host or need.workers == 1 else text


def explain(state: ClusterState, policy: Policy, decisions: Decisions, request: Request, now_s: float) -> str:
    """Why a request waits after these decisions, which `state` holds already."""
    need = request.need
    text = f"waiting: needs {words_of(need)}"
    if (blocked := _blocked_by_quota(state, policy, request, now_s)) is not None:
        before = "" if blocked.id == request.id else f"behind {blocked.id} of the same user, where "
        return f"{text}; {before}{_quota(policy, request.user, state.use.get(request.user, Use()))}"
    if fit(state.hosts, request.need) is None:
        could = _could(state.hosts, need)
        return f"{text}, which the cluster does not have when all else has ended: hosts must join; {could}"
    if fit(state.rooms, request.need) is not None:
        kept = (
            f"kept for {decisions.head}, which is before it in the queue"
            if decisions.head
            else "and it is about to start"
        )
        return f"{text}; there is room, {kept}"
    behind = "" if decisions.head in (None, request.id) else f"; behind {decisions.head} in the queue"
    stopping = sorted(run.request.id for run in state.running.values() if run.stopping)
    makes_room = f"; {', '.join(stopping)} stops to make room" if stopping and decisions.head == request.id else ""
    return f"{text}; {_largest_block(state, request.need, now_s)}{makes_room}{behind}"


def _blocked_by_quota(state: ClusterState, policy: Policy, request: Request, now_s: float) -> Request | None:
    """The first run of the user, up to this one, for which the quota has no room."""
    waiting = [each for line in state.waiting.values() for each in line if each.user == request.user]
    in_order = sorted(waiting, key=lambda each: policy.rank(each, 0.0, now_s))
    up_to = in_order[: next((at for at, each in enumerate(in_order) if each.id == request.id), -1) + 1]
    return next(
        (
            each
            for each in up_to
            if not policy.may_start(each, state.use)
            and (each.id == request.id or (policy.may_start(each, {}) and fit(state.hosts, each.need) is not None))
        ),
        None,
    )


def refusal(hosts: Rooms, policy: Policy, request: Request) -> str | None:
    """Why a request could never start, with the largest that could; None if it can."""
    need, quota = request.need, policy.quota_of(request.user)
    if not quota.allows(Use().more(need)):
        limits = _limits(quota.cpus, quota.gpus)
        return f"it needs {words_of(need)}, {_sum(need)} in all, and the quota of {request.user} is {limits}"
    if fit(hosts, need) is not None:
        return None
    return f"it needs {words_of(need)}, which this cluster does not have; {_could(hosts, need)}"


def _could(hosts: Rooms, need: Need) -> str:
    largest = largest_like(hosts, need)
    return f"the largest that could start is {words_of(largest)}" if largest else "nothing like it could start"


def largest_like(hosts: Rooms, need: Need) -> Need | None:
    """The nearest smaller need that empty hosts meet: fewer workers, else fewer GPUs or CPUs each, else less memory."""
    workers = _most(need.workers, lambda count: fit(hosts, replace(need, workers=count)) is not None)
    if workers:
        return replace(need, workers=workers)
    if need.gpus:
        gpus = _most(need.gpus, lambda count: fit(hosts, replace(need, workers=1, gpus=count)) is not None)
        if gpus:
            return replace(need, workers=1, gpus=gpus)
        memory = max((room.gpus[-need.gpus] for room, _ in hosts.alike() if len(room.gpus) >= need.gpus), default=0.0)
        smaller = replace(need, workers=1, gpu_memory_gib=memory)
        return smaller if memory and fit(hosts, smaller) is not None else None
    cpus = max((room.cpus for room, _ in hosts.alike()), default=0.0)
    return replace(need, workers=1, cpus=cpus) if cpus > 0 else None


def _most(limit: int, fits: Callable[[int], bool]) -> int:
    """The largest count below a limit that fits, by halving; 0 for none."""
    low, high = 0, min(limit, LIMIT)
    while low < high:
        middle = (low + high + 1) // 2
        low, high = (middle, high) if fits(middle) else (low, middle - 1)
    return low


@dataclass(frozen=True)
class _Block:
    host: str
    size: float


def _largest_block(state: ClusterState, need: Need, now_s: float) -> str:
    """What is free of what it needs, and who holds the rest of the host where most is."""
    if not need.one_host and need.workers > 1:
        free = sum(slots(room, need) * len(hosts) for room, hosts in state.rooms.alike())
        return f"free now: room for {_counted(free, 'worker')}{_first_end(state, None, now_s)}"
    block = _block(state.rooms, need)
    unit = "GPU" if need.gpus else "CPU"
    if not block.size:
        return f"no {unit} like that is free{_first_end(state, None, now_s)}"
    size = f"{block.size:g}" if need.gpus else _counted(block.size, unit)
    return f"the largest free block is {size} on {block.host}{_first_end(state, block.host, now_s)}"


def _block(rooms: Rooms, need: Need) -> _Block:
    def size(room: Room) -> float:
        return sum(gpu >= need.gpu_memory_gib for gpu in room.gpus) if need.gpus else room.cpus

    blocks = [_Block(hosts[0], size(room)) for room, hosts in rooms.alike()]
    return max(blocks, key=lambda block: (block.size, block.host), default=_Block("", 0))


def _first_end(state: ClusterState, host: str | None, now_s: float) -> str:
    """Who will give room back first, on a host or anywhere."""
    for end_s, run in state.ends:
        held = state.running[run]
        if host is None:
            return f", run {run} holds {_held(held)} {_for_how_long(held, end_s - now_s)}"
        if any(share.host == host for share in held.shares):
            return f", the rest held by run {run} {_for_how_long(held, end_s - now_s)}"
    return ", others hold the rest"


def _held(run: Running) -> str:
    gpus, cpus = sum(len(share.gpus) for share in run.shares), sum(share.cpus for share in run.shares)
    return _limits(None, gpus) if gpus else _limits(cpus, None)


def _for_how_long(run: Running, left_s: float) -> str:
    if run.request.duration_s is None and not run.stopping:
        return "for an unknown time"
    if left_s <= 0:
        return "for longer than expected"
    if left_s < HOUR_S:
        return f"for about {max(1, round(left_s / MINUTE_S))} min more"
    return f"for about {left_s / HOUR_S:.1f} h more"


def _quota(policy: Policy, user: str, use: Use) -> str:
    quota = policy.quota_of(user)
    held = _limits(None if quota.cpus is None else use.cpus, None if quota.gpus is None else use.gpus)
    return f"{user or 'this user'} holds {held} of a quota of {_limits(quota.cpus, quota.gpus)}"


def _limits(cpus: float | None, gpus: int | None) -> str:
    return " and ".join(_counted(n, unit) for n, unit in ((gpus, "GPU"), (cpus, "CPU")) if n is not None)


def _sum(need: Need) -> str:
    return _limits(need.all_cpus, need.all_gpus if need.gpus else None)


def _counted(count: float, noun: str) -> str:
    return f"{count:g} {noun}{'' if count == 1 else 's'}"
