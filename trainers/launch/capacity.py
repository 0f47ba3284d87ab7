"""How many workers there is room for: elastic runs (`train.workers: {min, max}`).

    room(node) = min over resources of ⌊free on the node / needed by a worker⌋,  summed over nodes that stay

Invariant: a node that is being drained, or that does not answer, gives no room; all room for `max` is taken at once,
less only after `train.faults.replacement_wait_s`, and never less than `min`. A run waits for its room without end, and
its events say for what.

Covered: counting, waiting, the reason in words. Not covered: asking an autoscaler for nodes (it sees the demand of a
started group).
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence, Set
from dataclasses import dataclass
from pathlib import Path

from cluster.errors import ResourceError
from cluster.runtime.nodes.tasks import on_every_node
from cluster.runtime.ray_private import GroupOfJob, draining_nodes, free_resources_of_nodes, placement_groups
from cluster.telemetry.events import FileSink, Progress
from cluster.telemetry.view import counted

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


def wait_for_slots(
    least: int, most: int, wait_s: float, count: Callable[[], int], say: Callable[[int], object] = lambda found: None
) -> int:
    """Between `least` and `most`. Blocks up to `wait_s` for `most`, and then until there is room for `least`: `say` is
    called with what there is, again and again."""
    deadline = time.monotonic() + wait_s
    while (found := count()) < most:
        if time.monotonic() >= deadline:
            if found >= least:
                break
            say(found)
        time.sleep(POLL_S)
    return min(found, most)


@dataclass
class RoomWait:
    """Says in the run's events what workers wait for, each time that it has changed."""

    stage: str
    events: Path
    workers: int
    alone: bool
    """Whether the Ray is the run's own: then nobody will give room back."""
    _said: str = ""

    def say(self, found: int | None = None) -> bool:
        """Whether Ray has asked for room that is not there; `found`: room that was counted. Raises ResourceError where
        there never will be any. Blocks on calls of the head."""
        each = worker_resources()
        ours, others = placement_groups()
        waits = found is not None or any(group.waits for group in ours)
        if not waits and not self._said:
            return False
        total = total_slots(each)
        if waits and self.alone and total < self.workers:
            raise _never(self.workers, each, total)
        text = waiting_text(self.workers, each, free_slots(each), total, others) if waits else "there is room now"
        if text != self._said:
            FileSink(self.events).emit(Progress(stage=self.stage, done=0, text=text))
        self._said = text if waits else ""
        return waits


def waiting_text(
    workers: int, each: Mapping[str, float], free: int, total: int, others: Sequence[GroupOfJob] = ()
) -> str:
    """What a run waits for, in words: its need, what is free and what there is, and who holds or wants the rest."""
    text = f"waiting: needs room for {counted(workers, 'worker')} ({_words(each)} each); free now: for {free}, in all: "
    text += f"for {total}" if total >= workers else f"for {total}, so that hosts must join or train.workers be lowered"
    held: dict[str, int] = {}
    for group in others:
        held[group.run] = held.get(group.run, 0) + (0 if group.waits else group.num_bundles)
    holders = [f"run {run} holds {count}" for run, count in sorted(held.items()) if count]
    waiting = sorted({group.run for group in others if group.waits and not held[group.run]})
    return "; ".join([text, *holders, *([f"{', '.join(waiting)} waits, too"] if waiting else [])])


def worker_resources() -> dict[str, float]:
    """Resources of one worker: a GPU where the cluster has any."""
    import ray

    return {"CPU": 1, "GPU": 1} if ray.cluster_resources().get("GPU", 0) > 0 else {"CPU": 1}


def _words(each: Mapping[str, float]) -> str:
    return " and ".join(f"{amount:g} {name}" for name, amount in each.items())


def _never(workers: int, each: Mapping[str, float], total: int) -> ResourceError:
    return ResourceError(
        "Cannot train",
        found=f"this host has room for {counted(total, 'worker')} ({_words(each)} each)",
        rule=f"train.workers asks for {workers}, and a private Ray gets no other hosts",
        remedy=f"Set train.workers to {total} or less, or use a larger cluster with --address.",
    )


def _answer() -> bool:
    return True
