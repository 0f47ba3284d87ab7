"""One look or scrape is about all replicas."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from typing import Any

import httpx
import numpy as np
import pytest
from prometheus_client.parser import text_string_to_metric_families

from serve.access import Access
from serve.deployments.commands import _table
from serve.handlers.peers import SELF_HEADER, Peer, Peers
from serve.observe.metrics import EndpointMetrics, merge, render
from serve.observe.monitor import CpuWindow, joined
from serve.protocol.statistics import ModelStatistics, summarize_samples
from tests.unit.serve_tests.conftest import Place
from tests.unit.serve_tests.test_asgi import GOOD, INFER, client
from tests.unit.serve_tests.test_gpu_memory import OneGpu


def entry(version: str, latencies_ms: list[float]) -> dict[str, Any]:
    return {
        "name": "m",
        "version": version,
        "rows": 2 * len(latencies_ms),
        "calls": len(latencies_ms),
        "outcomes": {"success": len(latencies_ms)},
        "samples": [(value, 2) for value in latencies_ms],
        "span_s": 1.0,
        "process": {"cpu_percent": 10.0, "memory_bytes": 5},
    }


def test_percentiles_are_those_of_all_requests_not_averages_of_percentiles() -> None:
    fast, slow = [1.0] * 99, [100.0] * 99
    (found,) = joined({"a": [entry("1", fast)], "b": [entry("1", slow)]}, [])
    assert found["latency_ms_p50"] == pytest.approx(float(np.percentile(fast + slow, 50)))
    assert found["latency_ms_p95"] == 100.0, "half of all requests are slow; the mean of the two p95 would be 50.5"
    assert found["requests_per_s"] == 198.0
    assert (found["outcomes"], found["rows_per_call"]) == ({"success": 198}, 2.0)
    assert found["process"] == {"cpu_percent": 20.0, "memory_bytes": 10}
    assert set(found["replicas"]) == {"a", "b"}


def test_a_version_that_one_replica_has_not_loaded_yet_is_told_of_the_others() -> None:
    found = joined({"a": [entry("1", [1.0]), entry("2", [2.0])], "b": [entry("1", [1.0])]}, ["c"])
    assert [(each["version"], len(each["replicas"]), each["missing"]) for each in found] == [
        ("1", 2, ["c"]),
        ("2", 1, ["c"]),
    ]
    assert summarize_samples([]) == {"requests": 0, "requests_per_s": 0, "rows_per_s": 0, "span_s": 0.0}


def test_rates_and_percentiles_are_those_of_the_last_minute(monkeypatch: pytest.MonkeyPatch) -> None:
    """168 requests a second, an hour after a few that were slow."""
    now_s = 10_000.0
    monkeypatch.setattr("serve.protocol.statistics.time.monotonic", lambda: now_s)
    statistics = ModelStatistics("m", "1")
    statistics._window.extend([(now_s, 10_000_000_000, 1)] * 30)
    now_s += 3600.0
    assert statistics.window() == {"requests": 0, "requests_per_s": 0, "rows_per_s": 0, "span_s": 60.0}
    statistics._window.extend((now_s - 10 + index / 168, 5_000_000, 2) for index in range(1680))
    found = statistics.window()
    assert (found["requests_per_s"], found["latency_ms_max"], found["rows_per_s"]) == (28.0, 5.0, 56.0)
    statistics._window.extend((now_s - 10 + index / 1000, 5_000_000, 1) for index in range(10_000))
    assert statistics.window()["requests_per_s"] == pytest.approx(1000, rel=0.01), "of the 4,096 that are kept"


def test_replicas_of_different_loads_add_their_own_rates() -> None:
    busy, idle = {**entry("1", [1.0] * 4096), "span_s": 4.096}, {**entry("1", [9.0] * 6), "span_s": 60.0}
    (found,) = joined({"a": [busy], "b": [idle]}, [])
    assert found["requests_per_s"] == pytest.approx(1000.1)
    assert (found["latency_ms_min"], found["latency_ms_max"]) == (1.0, 9.0)
    assert found["latency_ms_deviation"] == pytest.approx(float(np.std([1.0] * 4096 + [9.0] * 6)), rel=1e-3)


def test_cpu_is_that_of_about_the_last_minute() -> None:
    now_s = 100.0
    window = CpuWindow(started_s=0.0, now=lambda: now_s)
    assert window.percent(50.0) == 50.0, "the first reading: since the start"
    for second in range(1, 121):
        now_s = 100.0 + second
        found = window.percent(50.0 + 2 * second)
    assert found == pytest.approx(200.0)


def samples_of(text: bytes) -> dict[tuple[Any, ...], float]:
    return {
        (sample.name, *sorted(sample.labels.items())): sample.value
        for family in text_string_to_metric_families(text.decode())
        for sample in family.samples
    }


def test_one_scrape_has_every_replica_once_and_names_those_that_are_missing(in_place: Callable[..., Any]) -> None:
    async def test(place: Place) -> None:
        async with client(place) as http:
            await http.post(INFER, content=GOOD)
        own = render(place.repository, "a")
        other = own.replace(b'replica="a"', b'replica="b"')
        found = samples_of(merge(own, {"b": other, "c": None}, "m"))
        for replica in ("a", "b"):
            labels = (("model", "m"), ("replica", replica), ("version", "1"))
            assert found["manta_serve_requests_total", labels[0], ("outcome", "success"), *labels[1:]] == 1
            assert found["manta_serve_total_seconds_bucket", ("le", "+Inf"), *labels] == 1
        up = {key[-1][1]: value for key, value in found.items() if key[0] == "manta_serve_replica_up"}
        assert up == {"a": 1, "b": 1, "c": 0}

    in_place(test)


def test_a_gpu_that_two_replicas_share_is_counted_once(in_place: Callable[..., Any]) -> None:
    async def test(place: Place) -> None:
        values = {"power_watts": 70.0, "temperature_celsius": 41, "ecc_uncorrected": 2}
        gauges = EndpointMetrics(place.repository, "0", OneGpu(**values))
        from prometheus_client import CollectorRegistry, generate_latest

        registry = CollectorRegistry(auto_describe=False)
        registry.register(gauges)
        text = generate_latest(registry)
        found = samples_of(merge(text, {"b": text}, "m"))
        for name, value in values.items():
            assert found[f"manta_serve_gpu_{name}", ("gpu", "GPU-1")] == value

    in_place(test)


def test_a_look_at_one_replica_asks_the_others_with_the_clients_token(in_place: Callable[..., Any]) -> None:
    asked: list[tuple[str, str, str]] = []

    def answer(request: httpx.Request) -> httpx.Response:
        asked.append((request.url.path, request.url.query.decode(), request.headers.get("authorization", "")))
        if request.url.host == "gone":
            raise httpx.ConnectError("no")
        return httpx.Response(200, content=json.dumps([entry("1", [3.0])]).encode())

    async def test(place: Place) -> None:
        async def others() -> list[Peer]:
            return [Peer("b", ("http://gone/m", "http://there/m")), Peer("c", ("http://gone/m",))]

        place.controlplane.peers = Peers("a", others)
        async with client(place) as http:
            (found,) = (await http.get("/stats", headers={"authorization": "Bearer t"})).json()
            alone = (await http.get("/stats?replica=self")).json()
        assert (sorted(found["replicas"]), found["missing"]) == (["a", "b"], ["c"])
        assert asked == [("/m/stats", "replica=self", "Bearer t")] * 3
        assert "samples" in alone[0]

    transport = httpx.MockTransport(answer)
    real = httpx.AsyncClient

    def patched(**options: Any) -> httpx.AsyncClient:
        return real(**options) if "transport" in options else real(transport=transport, **options)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("serve.handlers.peers.httpx.AsyncClient", patched)
        in_place(test, pages=True)


@pytest.mark.parametrize(("from_peer", "passed_on"), [(False, 2), (True, 0)])
def test_a_load_is_passed_on_once_and_a_replica_that_did_not_follow_is_named(
    in_place: Callable[..., Any], from_peer: bool, passed_on: int
) -> None:
    asked: list[tuple[str, str, str, str]] = []

    def answer(request: httpx.Request) -> httpx.Response:
        headers = request.headers
        asked.append((request.method, request.url.path, headers[SELF_HEADER], headers["authorization"]))
        return httpx.Response(200 if request.url.host == "there" else 500)

    async def test(place: Place) -> None:
        async def others() -> list[Peer]:
            return [Peer("b", ("http://there/m",)), Peer("c", ("http://broken/m",))]

        place.controlplane.peers = Peers("a", others)
        place.dataplane.access = Access(admin=(hashlib.sha256(b"admin").digest(),))
        headers = {"authorization": "Bearer admin"} | ({SELF_HEADER: "self"} if from_peer else {})
        async with client(place) as http:
            found = await http.post("/v2/repository/models/m/unload", headers=headers)
        assert found.status_code == (200 if from_peer else 503)
        assert from_peer or "replicas c did not unload; the others have" in found.json()["error"]
        assert asked == [("POST", "/m/v2/repository/models/m/unload", "self", "Bearer admin")] * passed_on
        assert not place.repository.ready

    transport = httpx.MockTransport(answer)
    real = httpx.AsyncClient

    def patched(**options: Any) -> httpx.AsyncClient:
        return real(**options) if "transport" in options else real(transport=transport, **options)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("serve.handlers.peers.httpx.AsyncClient", patched)
        in_place(test)


def test_the_watch_shows_mean_percentiles_throughput_cpu_and_memory() -> None:
    (stats,) = joined({"a": [entry("3", [1.0, 2.0])], "b": [entry("3", [9.0])]}, ["c"])
    row = {"name": "digits", "state": "READY", "url": "http://h/digits", "stats": [stats]}
    head, line = _table([row, {"name": "gone", "state": "UNREACHABLE", "url": "u"}]).splitlines()[:2]
    for title in ("VERSION", "REPLICAS", "REQ/S", "MEAN MS", "P50 MS", "P95 MS", "P99 MS", "CPU %", "MEM MIB"):
        assert title in head
    assert line.split()[:5] == ["digits", "3", "READY", "2", "3.00"]
    assert "1 replicas do not answer" in line
