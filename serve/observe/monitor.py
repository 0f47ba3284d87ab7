"""/stats and /metrics: what an endpoint has done in the last minute, over all its replicas.

Invariant: percentiles are those of the requests of all replicas together, not averages of percentiles; a replica that
did not answer is named. `?replica=self` answers for this replica alone.
"""

from __future__ import annotations

import asyncio
import functools
import time
from collections import Counter, deque
from collections.abc import Callable, Iterable
from contextlib import suppress
from typing import Any

import orjson
import psutil
from fastapi import FastAPI, Request
from fastapi.responses import Response

from serve.handlers.controlplane import ControlPlane
from serve.handlers.peers import SELF
from serve.protocol.statistics import WINDOW_S, ModelStatistics, summarize_samples

READ_EVERY_S = 1.0
PROMETHEUS_TEXT = "text/plain; version=0.0.4"


def add_monitor(app: FastAPI, controlplane: ControlPlane) -> None:
    """Add both paths to the endpoint's application."""
    repository = controlplane.repository

    @app.get("/stats", summary="Latency, throughput, CPU and memory of the last minute, over all replicas")
    async def stats(request: Request, replica: str = "") -> list[dict[str, Any]]:
        mine = [entry(model.statistics) for model in repository.models.values()]
        if replica == SELF:
            return mine
        answers = await controlplane.peers.ask("/stats", request.headers.get("authorization", ""))
        told = {name: orjson.loads(answer) for name, answer in answers.items() if answer is not None}
        missing = sorted(name for name, answer in answers.items() if answer is None)
        return joined({controlplane.peers.replica: mine, **told}, missing)

    @app.get("/metrics", summary="Prometheus metrics of all replicas")
    async def metrics(request: Request, replica: str = "") -> Response:
        from serve.observe.metrics import merge, render

        mine = await asyncio.to_thread(render, repository, controlplane.peers.replica)
        if replica != SELF:
            answers = await controlplane.peers.ask("/metrics", request.headers.get("authorization", ""))
            mine = await asyncio.to_thread(merge, mine, answers, repository.name)
        return Response(mine, media_type=PROMETHEUS_TEXT)


def entry(statistics: ModelStatistics) -> dict[str, Any]:
    """One version's part of one replica, as its peers join it."""
    samples, span_s = statistics.samples()
    return {
        "name": statistics.name,
        "version": statistics.version,
        "rows": statistics.inference_count,
        "calls": statistics.execution_count,
        "outcomes": dict(statistics.outcomes),
        "unseen": dict(statistics.unseen),
        "samples": samples,
        "span_s": span_s,
        "process": process_usage(),
    }


def joined(by_replica: dict[str, list[dict[str, Any]]], missing: list[str]) -> list[dict[str, Any]]:
    """One entry a version, over all replicas that answered."""
    versions = sorted({each["version"] for entries in by_replica.values() for each in entries}, key=int)
    found = []
    for version in versions:
        parts = {name: e for name, entries in by_replica.items() for e in entries if e["version"] == version}
        outcomes: Counter[str] = Counter()
        unseen: Counter[str] = Counter()
        for part in parts.values():
            outcomes.update(part["outcomes"])
            unseen.update(part.get("unseen", {}))
        rows, calls = (sum(part[key] for part in parts.values()) for key in ("rows", "calls"))
        found.append(
            {
                "name": next(iter(parts.values()))["name"],
                "version": version,
                "rows_per_call": round(rows / max(calls, 1), 3),
                "outcomes": dict(outcomes),
                "unseen": dict(unseen),
                **summarize_samples([(part["samples"], part["span_s"]) for part in parts.values()]),
                "process": _sum(part["process"] for part in parts.values()),
                "replicas": {
                    name: {**_brief(summarize_samples([(part["samples"], part["span_s"])])), **part["process"]}
                    for name, part in parts.items()
                },
                "missing": missing,
            }
        )
    return found


def process_usage() -> dict[str, float]:
    """CPU of about the last minute and resident memory of this process and its engine processes."""
    process = psutil.Process()
    cpu_s, memory_bytes = 0.0, 0
    for each in (process, *process.children()):
        with suppress(psutil.Error):
            times = each.cpu_times()
            cpu_s += times.user + times.system
            memory_bytes += each.memory_info().rss
    return {"cpu_percent": round(_cpu_of(process.pid).percent(cpu_s), 1), "memory_bytes": memory_bytes}


class CpuWindow:
    """CPU seconds as they were read, for their mean over about `WINDOW_S`; the first is the process's start."""

    def __init__(self, started_s: float, now: Callable[[], float] = time.monotonic) -> None:
        self._now = now
        self._readings = deque([(started_s, 0.0)])

    def percent(self, cpu_s: float) -> float:
        """Of one core, since the oldest reading of the last minute, or the last one before it."""
        now_s = self._now()
        while len(self._readings) > 1 and self._readings[1][0] <= now_s - WINDOW_S:
            self._readings.popleft()
        start_s, before_s = self._readings[0]
        if now_s - self._readings[-1][0] >= READ_EVERY_S:
            self._readings.append((now_s, cpu_s))
        return max(0.0, 100.0 * (cpu_s - before_s) / max(now_s - start_s, 1e-3))


@functools.cache
def _cpu_of(pid: int) -> CpuWindow:
    uptime_s = time.time() - psutil.Process(pid).create_time()
    return CpuWindow(time.monotonic() - uptime_s)


def _brief(window: dict[str, float]) -> dict[str, float]:
    return {key: window[key] for key in ("requests", "requests_per_s", "latency_ms_p99") if key in window}


def _sum(usages: Iterable[dict[str, float]]) -> dict[str, float]:
    total: Counter[str] = Counter()
    for usage in usages:
        total.update(usage)
    return dict(total)
