"""A function is called once on every live node, and one that fails there does not spoil the others."""

from __future__ import annotations

import ray

from cluster.probe import read_host, sum_facts
from cluster.runtime.nodes.tasks import on_every_node


def test_every_node_answers_without_a_free_cpu(ray_local: str) -> None:
    # all CPUs are taken while the nodes are asked
    group = ray.util.placement_group([{"CPU": ray.available_resources()["CPU"]}])
    ray.get(group.ready(), timeout=60)
    try:
        (result,) = on_every_node(read_host)
    finally:
        ray.util.remove_placement_group(group)
    assert result.problem is None
    assert sum_facts([result.value]).nodes == 1


def fail() -> None:
    raise ValueError("not on this node")


def test_a_failure_is_an_entry_with_its_reason(ray_local: str) -> None:
    (result,) = on_every_node(fail)
    assert result.value is None
    assert "ValueError" in (result.problem or "")


def test_a_node_that_does_not_answer_in_time_is_told(ray_local: str) -> None:
    (result,) = on_every_node(_never, timeout_s=0.5)
    assert result.problem == "it did not answer in time"


def _never() -> None:
    import threading

    threading.Event().wait()
