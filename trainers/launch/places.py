"""How many workers there is room for: elastic runs (`train.workers: {min, max}`).

    room(node) = min over resources of ⌊free on the node / needed by a worker⌋,  summed over nodes that stay

Invariant: a node that has been told to go gives no room; all room for `max` is taken at once, less only after
`train.faults.replacement_wait_s`, and never less than `min`.

Covered: counting, waiting. Not covered: asking an autoscaler for nodes (it sees the demand of a started group).
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping

from cluster.errors import WorkerLostError

POLL_S = 0.5  # Ray's nodes report what is free every 0.1 s


def count_places(free: Mapping[str, Mapping[str, float]], each: Mapping[str, float]) -> int:
    """Room for workers that need `each`, by node."""
    return sum(int(min(node.get(name, 0.0) // amount for name, amount in each.items())) for node in free.values())


def free_places(each: Mapping[str, float]) -> int:
    """Room in the running Ray session, without nodes that are being drained."""
    from ray._private import state

    going = going_nodes()
    return count_places({n: free for n, free in state.available_resources_per_node().items() if n not in going}, each)


def going_nodes() -> set[str]:
    """Ids of the nodes that have been told to go (preemption, scale-down, a graceful stop)."""
    from ray._private import state

    return set(state.state.get_draining_nodes())


def wait_for_places(least: int, most: int, wait_s: float, count: Callable[[], int]) -> int:
    """Between `least` and `most`. Blocks up to `wait_s` for `most`. Raises WorkerLostError below `least`."""
    deadline = time.monotonic() + wait_s
    while (found := count()) < most:
        if time.monotonic() >= deadline:
            break
        time.sleep(POLL_S)
    if found >= least:
        return min(found, most)
    raise WorkerLostError(
        "Cannot train",
        found=f"there is room for {found} workers after {wait_s:g} s",
        rule=f"train.workers.min is {least}",
        remedy="Add nodes or lower train.workers.min, then run the same command again: it goes on from the last "
        "checkpoint.",
    )
