"""Where a GPU model's replicas may go: decided by its measured footprint, before anything is started.

A replica reserves `gpu_memory_mib` of Ray (cluster/runtime/nodes/gpu_memory.py: what was free on the node) and for the
share of a GPU that its footprint is, so that Ray packs replicas by memory and never promises a byte twice. A model
whose footprint was not measured gets a GPU of its own.

Invariant: a deploy that does not fit is refused with numbers and with the names of who holds the memory, and nothing
has been started or taken away for it.

Covered: nodes of one Ray, GPUs of different sizes (the share is of the smallest, so that it holds on each).
Not covered: replicas that the autoscaler adds later (they wait in Ray Serve until there is room).
"""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from cluster.bundle import open_bundle
from cluster.errors import MemoryShortError
from cluster.runtime.nodes.gpu_memory import GPU_MEMORY, MIB
from cluster.runtime.ray_private import free_resources_of_nodes
from serve.config import EndpointConfig
from serve.models.gpu_memory import CONTEXT_BYTES, GIB, GpuRoom, read_rooms

LOG = logging.getLogger(__name__)
REPLICA_CPUS = 0.5  # logical: a replica shares its host with the work that made the model
SHARE_STEPS = 10_000  # Ray counts resources in ten-thousandths
# A replica that has just ended gives its reservation back with Ray's next report (0.1 s), after its process has gone
SETTLE_S = 5.0
POLL_S = 0.2


@dataclass(frozen=True)
class GpuNode:
    """What one node offers now."""

    address: str
    rooms: tuple[GpuRoom, ...]
    free_gpus: float
    """By Ray's account, as is the next one."""
    free_mib: float | None
    """None: the node was started without the resource."""


@dataclass(frozen=True)
class GpuShare:
    """What one replica reserves."""

    num_gpus: float
    needed_bytes: int
    """0: not measured."""
    is_counted: bool = True
    """The nodes have the memory resource."""

    @property
    def memory_mib(self) -> int:
        """What is reserved of the resource; 0 where there is none, or nothing is known."""
        return math.ceil(self.needed_bytes / MIB) if self.is_counted else 0


def gpu_share(footprint_bytes: int | None, nodes: Sequence[GpuNode]) -> GpuShare:
    """The share of one replica. Needs nodes with GPUs. Raises MemoryShortError for what no GPU can hold."""
    totals = [room.total_bytes for node in nodes for room in node.rooms if room.total_bytes]
    if footprint_bytes is None or not totals:
        return GpuShare(1.0, 0)
    needed = footprint_bytes + CONTEXT_BYTES
    if needed > max(totals):
        raise _short(needed, 1, 0, nodes)
    share = min(1.0, math.ceil(needed / min(totals) * SHARE_STEPS) / SHARE_STEPS)
    return GpuShare(share, needed, any(node.free_mib is not None for node in nodes))


def replicas_that_fit(share: GpuShare, nodes: Sequence[GpuNode]) -> int:
    """How many more replicas Ray could place, and NVML's free memory could hold."""
    return sum(_fit_on(share, node) for node in nodes)


def check_fits(share: GpuShare, replicas: int, nodes: Sequence[GpuNode]) -> None:
    """Raise MemoryShortError unless `replicas` more have room."""
    fit = replicas_that_fit(share, nodes)
    if fit < replicas:
        raise _short(share.needed_bytes, replicas, fit, nodes)


def actor_options(config: EndpointConfig, before: EndpointConfig | None, reserved: dict[str, Any]) -> dict[str, Any]:
    """Ray's options for a replica of `config`. On a GPU it reads the nodes: blocks, and raises MemoryShortError.

    `before` is what the endpoint serves now with `reserved` for each replica: only what is more has to fit.
    """
    options: dict[str, Any] = {"num_cpus": REPLICA_CPUS}
    if config.device == "cpu":
        return options
    nodes = gpu_nodes()
    if before is not None and "num_gpus" in reserved and footprint_bytes(before) == footprint_bytes(config):
        # the same options: the replicas stay, and load the new version beside the old one
        mib = int(reserved.get("resources", {}).get(GPU_MEMORY, 0))
        share = GpuShare(reserved["num_gpus"], mib * MIB, is_counted=mib > 0)
        more = config.spec.replicas.min - before.spec.replicas.min
    else:
        share, more = gpu_share(footprint_bytes(config), nodes), max(1, config.spec.replicas.min)
    _wait_for_room(share, max(0, more), nodes)
    resources = {GPU_MEMORY: share.memory_mib} if share.memory_mib else {}
    LOG.info("%s: a replica takes %.4f GPU and %d MiB", config.name, share.num_gpus, share.memory_mib)
    return {**options, "num_gpus": share.num_gpus, "resources": resources}


def footprint_bytes(config: EndpointConfig) -> int | None:
    """Measured memory of the versions that a replica loads; None where one was not measured."""
    found = [open_bundle(v.folder).variant(v.variant).footprint_bytes for v in config.loaded]
    known = [value for value in found if value is not None]
    return sum(known) + CONTEXT_BYTES * (len(known) - 1) if len(known) == len(found) else None


def gpu_nodes() -> list[GpuNode]:
    """Every node's GPUs and what Ray has left there. Blocks."""
    from cluster.runtime.nodes.tasks import on_every_node

    left = free_resources_of_nodes()
    found = []
    for result in on_every_node(read_rooms):
        have = left.get(result.node_id, {})
        if result.problem:
            LOG.warning("the GPUs of %s are not known: %s", result.address, result.problem)
        elif result.value:
            found.append(GpuNode(result.address, result.value, have.get("GPU", 0.0), _left(have, result.node_id)))
    return found


def _left(have: dict[str, float], node_id: str) -> float | None:
    """Ray leaves a resource out of what is available when none of it is: not the same as one that never was."""
    import ray

    total: dict[str, float] = next((node["Resources"] for node in ray.nodes() if node["NodeID"] == node_id), {})
    return have.get(GPU_MEMORY, 0.0) if GPU_MEMORY in total else None


def _wait_for_room(share: GpuShare, replicas: int, nodes: list[GpuNode], look: Callable[[], Any] = gpu_nodes) -> None:
    deadline_s = time.monotonic() + SETTLE_S
    while replicas_that_fit(share, nodes) < replicas and time.monotonic() < deadline_s:
        time.sleep(POLL_S)
        nodes = look()
    check_fits(share, replicas, nodes)


def _fit_on(share: GpuShare, node: GpuNode) -> int:
    limits = [math.floor(node.free_gpus / share.num_gpus + 1e-9)]
    if share.memory_mib:
        limits.append(math.floor((node.free_mib or 0.0) / share.memory_mib))
    free = [room.free_bytes for room in node.rooms if room.free_bytes is not None]
    if share.needed_bytes and len(free) == len(node.rooms):
        limits.append(sum(value // share.needed_bytes for value in free))
    return min(limits)


def _short(needed_bytes: int, replicas: int, fit: int, nodes: Sequence[GpuNode]) -> MemoryShortError:
    lines = [f"{node.address}: {_told(node, room)}" for node in nodes for room in node.rooms]
    need = f"{needed_bytes / GIB:.2f} GiB, the driver's part included" if needed_bytes else "a GPU of its own"
    return MemoryShortError(
        "Cannot place a model on the cluster's GPUs",
        found=f"{fit} of {replicas} replicas have room; {'; '.join(lines) or 'no node has a GPU'}",
        rule=f"each replica needs {need}, on one GPU",
        remedy="Undeploy another endpoint, lower serve.batching.max_rows, or add a node.",
        details={"needed_bytes": needed_bytes, "replicas": replicas, "fit": fit},
    )


def _told(node: GpuNode, room: GpuRoom) -> str:
    free = "?" if room.free_bytes is None else f"{room.free_bytes / GIB:.2f}"
    total = "?" if room.total_bytes is None else f"{room.total_bytes / GIB:.2f}"
    unreserved = "" if node.free_mib is None else f", {node.free_mib * MIB / GIB:.2f} not reserved on the node"
    return f"{room.name} has {free} of {total} GiB free{unreserved}; held by {room.holders}"
