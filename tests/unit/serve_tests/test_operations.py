"""What an operator sees and steers by: metrics, the monitor window, memory refusals, the number of replicas."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import pytest
from prometheus_client.parser import text_string_to_metric_families

from cluster.errors import MemoryShortError
from cluster.probe.gpus import GpuSourceReading
from cluster.probe.probe import GpuReading
from serve.deployments.scaling import ReplicaLoad, ScalingPolicy, Targets, desired_replicas, places
from serve.memory import CONTEXT_BYTES, GIB, check_room
from serve.observe.metrics import EndpointMetrics, render
from serve.statistics import ModelStatistics
from tests.unit.serve_tests.conftest import Place
from tests.unit.serve_tests.test_door import GOOD, INFER, client


def test_metrics_count_what_happened(in_place: Callable[..., Any]) -> None:
    async def test(place: Place) -> None:
        async with client(place) as http:
            for body in (GOOD, GOOD, b"{"):
                await http.post(INFER, content=body)
            text = (await http.get("/metrics")).text
        samples = {
            (sample.name, sample.labels.get("outcome", sample.labels.get("le", ""))): sample.value
            for family in text_string_to_metric_families(text)
            for sample in family.samples
        }
        assert samples["manta_serve_requests_total", "success"] == 2
        assert samples["manta_serve_requests_total", "bad_request"] == 1
        assert samples["manta_serve_rows_total", ""] == 2
        assert samples["manta_serve_queued_rows", ""] == 0
        for phase in ("queue", "compute", "total"):
            assert samples[f"manta_serve_{phase}_seconds_count", ""] == 2
            assert samples[f"manta_serve_{phase}_seconds_bucket", "+Inf"] == 2

    in_place(test, human=True)


def test_the_window_has_percentiles_and_throughput(in_place: Callable[..., Any]) -> None:
    async def test(place: Place) -> None:
        async with client(place) as http:
            for _ in range(10):
                await http.post(INFER, content=GOOD)
            (entry,) = (await http.get("/stats")).json()
        assert entry["requests"] == 10
        assert 0 < entry["latency_ms_p50"] <= entry["latency_ms_p95"] <= entry["latency_ms_p99"]
        assert entry["requests_per_s"] > 0
        assert entry["process"]["memory_bytes"] > 0
        assert entry["process"]["cpu_percent"] >= 0

    in_place(test, human=True)


class OneGpu:
    """A source with one GPU as told."""

    def __init__(self, **values: Any) -> None:
        self._gpu = GpuReading(uuid="GPU-1", name="Fake 80G", **values)

    def read(self) -> GpuSourceReading:
        return GpuSourceReading(gpus=(self._gpu,))


class NoNvml:
    def read(self) -> GpuSourceReading:
        return GpuSourceReading(gpus=None, reasons={"gpus": "NVML did not start"})


def test_a_model_that_does_not_fit_is_refused_with_numbers_and_holders() -> None:
    source = OneGpu(memory_total_bytes=80 * GIB, memory_free_bytes=10 * GIB, processes=(1, 2**22 - 1))
    check_room("cuda:0", 10 * GIB - CONTEXT_BYTES, source)
    with pytest.raises(MemoryShortError) as caught:
        check_room("cuda:0", 12 * GIB, source)
    message = str(caught.value)
    for words in ("10.00 of 80.00 GiB are free", "needs 12.00 GiB", "(pid 1)", f"pid {2**22 - 1}"):
        assert words in message


@pytest.mark.parametrize(
    "source", [NoNvml(), OneGpu(memory_total_bytes=None, memory_free_bytes=None, reasons={"memory": "lying"})]
)
def test_memory_that_cannot_be_read_is_not_judged(source: Any) -> None:
    check_room("cuda:0", 10**15, source)
    check_room("cpu", 10**15, source)


def test_gpu_metrics_leave_out_what_cannot_be_read(in_place: Callable[..., Any]) -> None:
    async def test(place: Place) -> None:
        gauges = EndpointMetrics(place.repository, OneGpu(memory_used_bytes=5, power_watts=None))
        found = {family.name: family.samples for family in gauges.collect()}
        assert found["manta_serve_gpu_memory_used_bytes"][0].value == 5
        assert found["manta_serve_gpu_power_watts"] == []
        assert b"manta_serve_gpu" in render(place.repository)

    in_place(test)


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


def test_only_recent_requests_count_for_the_latency_target(monkeypatch: pytest.MonkeyPatch) -> None:
    statistics = ModelStatistics("m", "1")
    assert statistics.recent_latency_s(2.0) == 0.0
    now = time.monotonic()
    statistics._window.extend([(now - 60, 9_000_000_000, 1), (now, 100_000_000, 1)])
    assert statistics.recent_latency_s(2.0) == pytest.approx(0.1)
