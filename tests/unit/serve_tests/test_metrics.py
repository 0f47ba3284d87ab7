"""What an operator sees: counts, the monitor window, GPU gauges."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from prometheus_client.parser import text_string_to_metric_families

from serve.observe.metrics import EndpointMetrics, render
from tests.unit.serve_tests.conftest import Place
from tests.unit.serve_tests.test_asgi import GOOD, INFER, client
from tests.unit.serve_tests.test_gpu_memory import OneGpu


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

    in_place(test, pages=True)


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

    in_place(test, pages=True)


def test_gpu_metrics_leave_out_what_cannot_be_read(in_place: Callable[..., Any]) -> None:
    async def test(place: Place) -> None:
        gauges = EndpointMetrics(place.repository, "0", OneGpu(memory_used_bytes=5, power_watts=None))
        found = {family.name: family.samples for family in gauges.collect()}
        assert found["manta_serve_gpu_memory_used_bytes"][0].value == 5
        assert found["manta_serve_gpu_power_watts"] == []
        assert b"manta_serve_gpu" in render(place.repository, "0")

    in_place(test)
