"""The number of replicas follows work and waiting."""

from __future__ import annotations

import pytest

from serve.deployments.scaling import ReplicaLoad, ScalingPolicy, Targets, desired_replicas, places


@pytest.mark.parametrize(
    ("current", "loads", "wanted"),
    [
        (1, [(0.7, 0.0, 0)], 1),
        (1, [(0.95, 0.0, 5)], 2),
        (4, [(0.9, 0.0, 1)] * 4, 6),
        (1, [(1.0, 9.0, 999)], 2),
        (2, [(0.1, 0.06, 10), (0.1, 0.0, 0)], 3),
        (4, [(0.1, 0.0, 0)] * 4, 1),
        (3, [(0.0, 0.0, 0)] * 3, 0),
        (1, [(0.0, 0.5, 4)], 2),
        (2, [], 2),
        (2, [(0.1, 0.0, 0, 0.3), (0.1, 0.0, 0, 0.1)], 3),
        (2, [(0.1, 0.0, 0, 0.19), (0.1, 0.0, 0, 0.1)], 1),
    ],
    ids=[
        "on target",
        "busy",
        "all busy",
        "at most doubles",
        "wait",
        "shrinks",
        "idle",
        "wedged engine",
        "nothing told",
        "latency",
        "latency on target",
    ],
)
def test_replicas_follow_work_and_waiting(current: int, loads: list[tuple], wanted: int) -> None:
    targets = Targets(busy=0.7, wait_s=0.05, latency_s=0.2)
    assert desired_replicas(current, [ReplicaLoad(*load) for load in loads], targets) == wanted


def test_the_policy_reads_what_replicas_tell() -> None:
    class Context:
        current_num_replicas = 2
        aggregated_metrics = {
            "engine_busy": {"a": 0.9, "b": 0.9}, "oldest_wait_s": {"a": 0.0, "b": 0.0}, "queued_rows": {"a": 1.0},
        }  # fmt: skip

    assert ScalingPolicy({"busy": 0.6, "wait_s": 0.05})(Context())[0] == 3


def test_no_more_gpu_replicas_are_asked_for_than_have_a_place(monkeypatch: pytest.MonkeyPatch) -> None:
    nodes = [{"GPU": 0.5, "gpu_memory_mib": 9000.0}, {"GPU": 1.0, "gpu_memory_mib": 40000.0}, {"CPU": 8.0}]
    assert [places({"GPU": 0.25, "gpu_memory_mib": 8000}, node) for node in nodes] == [1, 4, 0]
    monkeypatch.setattr("serve.deployments.scaling.free_resources_of_nodes", lambda: {"node": nodes[0]})
    policy = ScalingPolicy({"busy": 0.1, "wait_s": 0.05}, {"num_gpus": 0.25, "resources": {"gpu_memory_mib": 8000}})

    class Busy:
        current_num_replicas = 4
        aggregated_metrics = {"engine_busy": dict.fromkeys("abcd", 1.0)}

    assert policy(Busy())[0] == 5, "eight are wanted, one more has a place"
    assert desired_replicas(4, [ReplicaLoad(0.01, 0.0, 0)] * 4, Targets(0.7, 0.05), room=lambda: 0) == 1
