"""How many replicas an endpoint needs, from what its replicas say about themselves.

Ray Serve's own signal, running requests, does not see the queue on the HAProxy path (ray/serve/_private/replica.py:
requests that wait for our batcher are "running", and those that wait for a slot are not counted). Each replica tells
three numbers (`EndpointReplica.record_autoscaling_stats`): how busy its engine is, how long its oldest request has
waited, how many rows wait. Invariant: `desired_replicas` is a pure function; bounds and delays are Ray Serve's.

Reaction: replicas tell every second, the look-back is 2 s, so that a rise is answered in `up_delay_s` + about 3 s.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

BUSY, OLDEST_WAIT_S, QUEUED_ROWS = "engine_busy", "oldest_wait_s", "queued_rows"
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


def desired_replicas(current: int, loads: Sequence[ReplicaLoad], *, target_busy: float, target_wait_s: float) -> int:
    """Replicas that would bring the engines' busy share and the wait to their targets; 0 when nothing happens."""
    if not loads:
        return current
    if all(load.busy == 0 and load.queued_rows == 0 for load in loads):
        return 0
    by_work = sum(load.busy for load in loads) / target_busy
    longest_wait_s = max(load.oldest_wait_s for load in loads)
    by_wait = current * min(longest_wait_s / target_wait_s, GROWTH_MAX) if longest_wait_s > target_wait_s else 0.0
    return max(1, math.ceil(min(max(by_work, by_wait), current * GROWTH_MAX) - 1e-9))


class ScalingPolicy:
    """`desired_replicas` as Ray Serve calls it, in the controller."""

    def __init__(self, target_busy: float, target_wait_s: float) -> None:
        self._targets = {"target_busy": target_busy, "target_wait_s": target_wait_s}

    def __call__(self, ctx: Any) -> tuple[int, dict[str, Any]]:
        told = ctx.aggregated_metrics or {}
        replicas = set().union(*(values for values in told.values())) if told else set()
        loads = [
            ReplicaLoad(*(told.get(name, {}).get(replica, 0.0) for name in (BUSY, OLDEST_WAIT_S, QUEUED_ROWS)))
            for replica in replicas
        ]
        return desired_replicas(ctx.current_num_replicas, loads, **self._targets), {}
