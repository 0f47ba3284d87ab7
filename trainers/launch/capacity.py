"""How many workers there is room for: elastic runs (`train.workers: {min, max}`).

    room(node) = min over resources of ⌊free on the node / needed by a worker⌋,  summed over nodes that stay

Invariant: a node that is being drained, or that does not answer, gives no room; all room for `max` is taken at once,
less only after `train.faults.replacement_wait_s`, and never less than `min`.

Covered: counting, waiting. Not covered: asking an autoscaler for nodes (it sees the demand of a started group).
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Set

from cluster.errors import WorkerLostError
from cluster.runtime.nodes.tasks import on_every_node
from cluster.runtime.ray_private import draining_nodes, free_resources_of_nodes

POLL_S = 0.5  # Ray's nodes report what is free every 0.1 s


def count_slots(free: Mapping[str, Mapping[str, float]], each: Mapping[str, float]) -> int:
    """Room for workers that need `each`, by node."""
    return sum(int(min(node.get(name, 0.0) // amount for name, amount in each.items())) for node in free.values())


def free_slots(each: Mapping[str, float], silent: Set[str] = frozenset()) -> int:
    """Room in the running Ray session, without nodes that are being drained and without `silent` ones."""
    out = draining_nodes() | silent
    return count_slots({n: free for n, free in free_resources_of_nodes().items() if n not in out}, each)


def total_slots(each: Mapping[str, float]) -> int:
    """Room in the running Ray session if it were empty."""
    import ray

    out = draining_nodes()
    nodes = [node for node in ray.nodes() if node["Alive"] and node["NodeID"] not in out]
    return count_slots({node["NodeID"]: node["Resources"] for node in nodes}, each)


def unresponsive_nodes(timeout_s: float) -> set[str]:
    """Ids of nodes that run nothing within `timeout_s`: Ray believes for 15 s and more that a dead node lives, with
    all its room free. Blocks until all have answered."""
    import ray

    here = ray.get_runtime_context().get_node_id()
    return {result.node_id for result in on_every_node(_answer, timeout_s=timeout_s) if result.problem} - {here}


def wait_for_slots(least: int, most: int, wait_s: float, count: Callable[[], int]) -> int:
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


def _answer() -> bool:
    return True
