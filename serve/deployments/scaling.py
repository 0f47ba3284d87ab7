"""How many replicas an endpoint needs, from what its replicas say about themselves.

Ray Serve's own signal, running requests, does not see the queue on the HAProxy path (ray/serve/_private/replica.py:
requests that wait for our batcher are "running", and those that wait for a slot are not counted). Each replica tells
four numbers (`EndpointReplica.record_autoscaling_stats`): how busy its engine is, how long its oldest request has
waited, how many rows wait, the 95th percentile of its latency. On GPUs no more replicas are asked for than have room.
Invariant: `desired_replicas` is a pure function; bounds and delays are Ray Serve's.

Reaction: replicas tell every second, the look-back is 2 s, so that a rise is answered in `up_delay_s` + about 3 s.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from cluster.runtime.ray_private import free_resources_of_nodes

BUSY, OLDEST_WAIT_S, QUEUED_ROWS, LATENCY_S = "engine_busy", "oldest_wait_s", "queued_rows", "latency_p95_s"
LOOK_BACK_S = 2.0
METRICS_INTERVAL_S = 1.0
GROWTH_MAX = 2.0  # a decision at most doubles: the next one sees what the first one did


@dataclass(frozen=True)
class ReplicaLoad:
    """One replica over the look-back."""

    busy: float
    """Share of time in which the engine worked, 0..1."""
    oldest_wait_s: float
    queued_rows: float
    latency_p95_s: float = 0.0


@dataclass(frozen=True)
class Targets:
    """What the policy aims at."""

    busy: float
    wait_s: float
    latency_s: float = math.inf


def desired_replicas(
    current: int, loads: Sequence[ReplicaLoad], targets: Targets, *, room: Callable[[], int] | None = None
) -> int:
    """Replicas that would bring the engines' busy share, wait and latency to their targets; 0 when nothing happens.

    `room` returns how many more have a place, and is called only when more are wanted; None: places are not counted.
    """
    if not loads:
        return current
    if all(load.busy == 0 and load.queued_rows == 0 for load in loads):
        return 0
    by_work = sum(load.busy for load in loads) / targets.busy
    wanted = max(
        by_work,
        current * _excess(max(load.oldest_wait_s for load in loads), targets.wait_s),
        current * _excess(max(load.latency_p95_s for load in loads), targets.latency_s),
    )
    found = max(1, math.ceil(min(wanted, current * GROWTH_MAX) - 1e-9))
    return min(found, current + room()) if room is not None and found > current else found


def _excess(value: float, target: float) -> float:
    return min(value / target, GROWTH_MAX) if value > target else 0.0


class ScalingPolicy:
    """`desired_replicas` as Ray Serve calls it, in the controller."""

    def __init__(self, targets: dict[str, float], replica: dict[str, Any] | None = None) -> None:
        self._targets = Targets(**targets)
        self._room = Room(replica) if replica and replica.get("num_gpus") else None

    def __call__(self, ctx: Any) -> tuple[int, dict[str, Any]]:
        told = ctx.aggregated_metrics or {}
        replicas = set().union(*(values for values in told.values())) if told else set()
        names = (BUSY, OLDEST_WAIT_S, QUEUED_ROWS, LATENCY_S)
        loads = [ReplicaLoad(*(told.get(name, {}).get(replica, 0.0) for name in names)) for replica in replicas]
        return desired_replicas(ctx.current_num_replicas, loads, self._targets, room=self._room), {}


class Room:
    """How many more replicas with these Ray options have a place now: asked of Ray at most every `LOOK_BACK_S`."""

    def __init__(self, replica: dict[str, Any]) -> None:
        self._needs = {"GPU": replica["num_gpus"], **replica.get("resources", {})}
        self._found = 0
        self._next_s = 0.0

    def __call__(self) -> int:
        if time.monotonic() >= self._next_s:
            self._found = sum(places(self._needs, free) for free in free_resources_of_nodes().values())
            self._next_s = time.monotonic() + LOOK_BACK_S
        return self._found


def places(needs: Mapping[str, float], free: Mapping[str, float]) -> int:
    """How often `needs` fit into a node's free resources."""
    return min(math.floor(free.get(name, 0.0) / need + 1e-9) for name, need in needs.items() if need)
