"""Call a function once on every live node of the session's cluster.

Invariant: one result a node, in the order of node ids; a node that does not answer in time, or dies meanwhile, is an
entry with a reason and does not hold up the others. Needs no free CPU on any node.

Covered: plain functions, importable on the node. Not covered: keeping something alive there.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import ray
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from cluster.errors import summary_of

NODE_TIMEOUT_S = 30.0  # a first worker process on a busy node takes seconds


@dataclass(frozen=True)
class NodeResult:
    """What one node answered."""

    node_id: str
    address: str
    value: Any = None
    problem: str | None = None
    """Why there is no value."""


def on_every_node(function: Callable[[], Any], *, timeout_s: float = NODE_TIMEOUT_S) -> list[NodeResult]:
    """Run `function()` on every live node. Blocks up to `timeout_s`. Needs a Ray session."""
    nodes = sorted((node for node in ray.nodes() if node["Alive"]), key=lambda node: node["NodeID"])
    task = ray.remote(num_cpus=0, max_retries=0)(function)
    sent = [(node, task.options(scheduling_strategy=_only(node["NodeID"])).remote()) for node in nodes]
    deadline = time.monotonic() + timeout_s
    return [_collect(node, reference, deadline - time.monotonic()) for node, reference in sent]


def _only(node_id: str) -> NodeAffinitySchedulingStrategy:
    return NodeAffinitySchedulingStrategy(node_id, soft=False)


def _collect(node: dict[str, Any], reference: Any, timeout_s: float) -> NodeResult:
    node_id, address = node["NodeID"], node["NodeManagerAddress"]
    try:
        return NodeResult(node_id, address, value=ray.get(reference, timeout=max(0.0, timeout_s)))
    except ray.exceptions.GetTimeoutError:
        ray.cancel(reference, force=True)
        return NodeResult(node_id, address, problem="it did not answer in time")
    except ray.exceptions.RayError as error:
        return NodeResult(node_id, address, problem=summary_of(error))
