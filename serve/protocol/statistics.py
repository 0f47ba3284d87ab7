"""What one version of a model has done: counters, durations, a window of recent latencies.

Names and meanings of the counters are Triton's statistics extension: `inference_count` counts rows,
`execution_count` counts engine calls. Invariant: numbers only grow between resets; writers are the event loop and
the engine threads, each update is one short lock.
"""

from __future__ import annotations

import itertools
import threading
import time
from bisect import bisect_left
from collections import Counter, deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from cluster.errors import MantaError

# Upper bounds of the latency histograms, seconds: 0.1 ms (a small model alone) to 10 s, about 2.5 a decade
BUCKETS_S = (0.0001, 0.00025, 0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0)
WINDOW_REQUESTS = 4096  # the monitor window: enough for a p99 of 40 samples
WINDOW_S = 60.0  # and what is older does not count
PHASES = ("success", "fail", "queue", "compute_input", "compute_infer", "compute_output", "cache_hit", "cache_miss")


@dataclass
class Phase:
    """How often, and how long in total."""

    count: int = 0
    ns: int = 0

    def add(self, ns: int, count: int = 1) -> None:
        self.count += count
        self.ns += ns

    def to_json(self) -> dict[str, int]:
        return {"count": self.count, "ns": self.ns}


@dataclass
class BatchSize:
    """Engine calls of one size."""

    compute_input: Phase = field(default_factory=Phase)
    compute_infer: Phase = field(default_factory=Phase)
    compute_output: Phase = field(default_factory=Phase)


class Histogram:
    """Counts by upper bound, as Prometheus wants them."""

    def __init__(self) -> None:
        self._counts = [0] * (len(BUCKETS_S) + 1)
        self.sum_s = 0.0

    def add(self, seconds: float) -> None:
        self._counts[bisect_left(BUCKETS_S, seconds)] += 1
        self.sum_s += seconds

    def cumulative(self) -> list[tuple[str, float]]:
        """Upper bound -> number of values up to it; the last bound is infinity."""
        bounds = (*(f"{bound:g}" for bound in BUCKETS_S), "+Inf")
        return list(zip(bounds, itertools.accumulate(self._counts), strict=True))


class ModelStatistics:
    """Counters of one version."""

    def __init__(self, name: str, version: str) -> None:
        self.name = name
        self.version = version
        self.phases = {phase: Phase() for phase in PHASES}
        self.batches: dict[int, BatchSize] = {}
        self.inference_count = 0
        self.execution_count = 0
        self.last_inference_ms = 0
        self.outcomes: Counter[str] = Counter()
        self.unseen: Counter[str] = Counter()
        """Column -> values of raw rows that training did not have."""
        self.memory_bytes: dict[str, int | None] = {}
        """device -> memory that the engine reports there."""
        self.histograms = {phase: Histogram() for phase in ("queue", "compute", "total")}
        self._window: deque[tuple[float, int, int]] = deque(maxlen=WINDOW_REQUESTS)
        self._started_s = time.monotonic()
        self._lock = threading.Lock()

    def executed(self, rows: int, input_ns: int, infer_ns: int, output_ns: int) -> None:
        """One engine call."""
        with self._lock:
            self.execution_count += 1
            size = self.batches.setdefault(rows, BatchSize())
            durations = (("compute_input", input_ns), ("compute_infer", infer_ns), ("compute_output", output_ns))
            for phase, ns in durations:
                self.phases[phase].add(ns)
                getattr(size, phase).add(ns)

    def answered(self, rows: int, queue_ns: int, started_ns: int, result: Any) -> None:
        """One request has its outcome. `started_ns` is `perf_counter_ns` when it was queued."""
        total_ns = time.perf_counter_ns() - started_ns
        with self._lock:
            if isinstance(result, MantaError):
                self.phases["fail"].add(total_ns)
                self.outcomes["failed"] += 1
                return
            self.phases["success"].add(total_ns)
            self.phases["queue"].add(queue_ns)
            self.outcomes["success"] += 1
            self.inference_count += rows
            self.last_inference_ms = time.time_ns() // 1_000_000
            self.histograms["queue"].add(queue_ns / 1e9)
            self.histograms["compute"].add((total_ns - queue_ns) / 1e9)
            self.histograms["total"].add(total_ns / 1e9)
            self._window.append((time.monotonic(), total_ns, rows))

    def refused(self, reason: str) -> None:
        """One request was not run: `queue_full`, `deadline`, `canceled`, `bad_request`."""
        with self._lock:
            self.outcomes[reason] += 1

    def met_unseen(self, counts: Mapping[str, int]) -> None:
        """Raw rows had values that training did not have, so many a column."""
        with self._lock:
            self.unseen.update(counts)

    @property
    def engine_ns(self) -> int:
        """Time in engine calls since the start, joining and splitting included."""
        return sum(self.phases[phase].ns for phase in ("compute_input", "compute_infer", "compute_output"))

    def to_json(self) -> dict[str, Any]:
        """One entry of `model_stats`."""
        with self._lock:
            return {
                "name": self.name,
                "version": self.version,
                "last_inference": self.last_inference_ms,
                "inference_count": self.inference_count,
                "execution_count": self.execution_count,
                "inference_stats": {phase: value.to_json() for phase, value in self.phases.items()},
                "batch_stats": [
                    {
                        "batch_size": rows,
                        "compute_input": size.compute_input.to_json(),
                        "compute_infer": size.compute_infer.to_json(),
                        "compute_output": size.compute_output.to_json(),
                    }
                    for rows, size in sorted(self.batches.items())
                ],
                "memory_usage": [
                    _memory(device, size) for device, size in self.memory_bytes.items() if size is not None
                ],
                "response_stats": {},
            }

    def samples(self) -> tuple[list[tuple[float, int]], float]:
        """Milliseconds inside the server (queue and compute) and rows of the requests of the last minute, and the
        seconds in which they came: less than a minute for a young process, and where more came than are kept."""
        now_s = time.monotonic()
        with self._lock:
            is_full = len(self._window) == WINDOW_REQUESTS
            recent = self._since(now_s - WINDOW_S)
        span_s = min(WINDOW_S, now_s - self._started_s)
        if is_full and len(recent) == WINDOW_REQUESTS:
            span_s = now_s - recent[-1][0]
        return [(ns / 1e6, rows) for _, ns, rows in recent], span_s

    def recent_latency_s(self, span_s: float, requests_min: int = 1) -> float:
        """95th percentile of the requests of the last `span_s` seconds; 0 for fewer than `requests_min`."""
        with self._lock:
            recent = self._since(time.monotonic() - span_s)
        return float(np.percentile([ns for _, ns, _ in recent], 95)) / 1e9 if len(recent) >= requests_min else 0.0

    def window(self) -> dict[str, float]:
        """Latency and rate of the last minute of this process."""
        return summarize_samples([self.samples()])

    def _since(self, at_s: float) -> list[tuple[float, int, int]]:
        """Newest first. The lock is held."""
        return list(itertools.takewhile(lambda entry: entry[0] >= at_s, reversed(self._window)))


def summarize_samples(parts: Sequence[tuple[Sequence[Sequence[float]], float]]) -> dict[str, float]:
    """`ModelStatistics.samples` of one or several replicas as mean, spread, percentiles and rates.

    A rate is the sum of the replicas' rates, each over its own seconds.
    """
    rates = {
        "requests_per_s": round(sum(len(samples) / max(span_s, 1e-3) for samples, span_s in parts), 3),
        "rows_per_s": round(sum(sum(rows for _, rows in samples) / max(span_s, 1e-3) for samples, span_s in parts), 3),
        "span_s": round(max((span_s for _, span_s in parts), default=0.0), 3),
    }
    latency_ms = np.array([latency for samples, _ in parts for latency, _ in samples], dtype=float)
    if not latency_ms.size:
        return {"requests": 0, **rates}
    p50, p95, p99 = np.percentile(latency_ms, (50, 95, 99))
    return {
        "requests": latency_ms.size,
        **rates,
        "latency_ms_mean": round(float(latency_ms.mean()), 4),
        "latency_ms_deviation": round(float(latency_ms.std()), 4),
        "latency_ms_min": round(float(latency_ms.min()), 4),
        "latency_ms_max": round(float(latency_ms.max()), 4),
        "latency_ms_p50": round(float(p50), 4),
        "latency_ms_p95": round(float(p95), 4),
        "latency_ms_p99": round(float(p99), 4),
    }


def _memory(device: str, size_bytes: int) -> dict[str, Any]:
    kind, _, number = device.partition(":")
    return {"type": "CPU" if kind == "cpu" else "GPU", "id": int(number or 0), "byte_size": size_bytes}
