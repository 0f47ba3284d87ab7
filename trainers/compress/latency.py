"""What a graph costs: paired latency, best throughput, and the cost of a row.

Timing follows docs/compress.md: fixed threads, warm-up, the two graphs in alternating rounds, the median of rounds.
On a small shared machine the ratio of the two is meaningful, the absolute time much less.

Invariant: two graphs that are compared ran in the same process, on the same rows, in alternation.

Covered: ONNX Runtime on the CPU and its CUDA provider. Not covered: TensorRT engines (trainers/export/tensorrt.py).
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import onnxruntime as ort

from cluster.spec.compress import TargetSpec
from trainers.export.session import open_session

WARMUP_RUNS = 5
ROUNDS = 9  # odd, so that the median is a measured round
THROUGHPUT_ROUNDS = 3
ROUND_S = 0.02  # long against the clock's and the scheduler's grain of about 1 ms
RUNS_PER_ROUND_MAX = 400
THROUGHPUT_BATCHES = (8, 32)  # larger ones leave the caches with small images and gain nothing
LARGEST_BATCH = max(THROUGHPUT_BATCHES)


@dataclass(frozen=True)
class Cost:
    """What one graph costs, beside the baseline that was measured in alternation with it."""

    batch_size: int
    """Rows a call of the latencies."""
    latency_ms_p50: float
    latency_ms_p99: float
    speedup: float
    """Median over rounds of baseline's time / this graph's time at `batch_size`."""
    best_batch_size: int
    best_rows_per_s: float
    thread_ms_per_row: float
    """Threads × milliseconds / rows, at the best batch size."""
    cost_ratio: float
    """Baseline's `thread_ms_per_row` / this graph's."""

    def to_dict(self) -> dict[str, float]:
        return asdict(self)


@dataclass(frozen=True)
class Timing:
    """Times of both graphs at one batch size."""

    batch_size: int
    p50_ms: tuple[float, float]
    p99_ms: tuple[float, float]
    speedup: float


def paired_cost(
    baseline: Path, candidate: Path, inputs: Mapping[str, np.ndarray], target: TargetSpec
) -> tuple[Cost, Cost]:
    """Costs of both graphs on the target."""
    sessions = [open_session(path, threads=target.threads, device=target.device) for path in (baseline, candidate)]
    at_target = time_pair(sessions, tile_rows(inputs, target.batch_size))
    others = [
        time_pair(sessions, tile_rows(inputs, size), rounds=THROUGHPUT_ROUNDS)
        for size in THROUGHPUT_BATCHES
        if size != target.batch_size
    ]
    best = [min((at_target, *others), key=lambda timing: timing.p50_ms[which] / timing.batch_size) for which in (0, 1)]
    per_row = [best[which].p50_ms[which] / best[which].batch_size * target.threads for which in (0, 1)]
    costs = [
        Cost(
            batch_size=target.batch_size,
            latency_ms_p50=at_target.p50_ms[which],
            latency_ms_p99=at_target.p99_ms[which],
            speedup=at_target.speedup if which else 1.0,
            best_batch_size=best[which].batch_size,
            best_rows_per_s=1e3 * best[which].batch_size / best[which].p50_ms[which],
            thread_ms_per_row=per_row[which],
            cost_ratio=per_row[0] / per_row[which],
        )
        for which in (0, 1)
    ]
    return costs[0], costs[1]


def time_pair(sessions: list[ort.InferenceSession], feed: Mapping[str, np.ndarray], *, rounds: int = ROUNDS) -> Timing:
    """Time two sessions on the same rows, in alternation."""
    runs = [_runs_per_round(session, feed) for session in sessions]
    times: list[list[np.ndarray]] = [[], []]
    for _ in range(rounds):
        for which in (0, 1):
            times[which].append(_time_runs(sessions[which], feed, runs[which]))
    medians = [np.array([np.median(one) for one in of_session]) for of_session in times]
    p50 = [float(np.median(of_session)) * 1e3 for of_session in medians]
    p99 = [float(np.percentile(np.concatenate(of_session), 99)) * 1e3 for of_session in times]
    size = len(next(iter(feed.values())))
    return Timing(size, (p50[0], p50[1]), (p99[0], p99[1]), float(np.median(medians[0] / medians[1])))


def tile_rows(inputs: Mapping[str, np.ndarray], batch_size: int) -> dict[str, np.ndarray]:
    """`batch_size` rows, repeating the given ones where there are too few."""
    return {
        name: np.ascontiguousarray(np.resize(np.asarray(array[:batch_size]), (batch_size, *array.shape[1:])))
        for name, array in inputs.items()
    }


def _runs_per_round(session: ort.InferenceSession, feed: Mapping[str, np.ndarray]) -> int:
    for _ in range(WARMUP_RUNS):
        session.run(None, feed)
    one_s = float(np.median(_time_runs(session, feed, WARMUP_RUNS)))
    return int(np.clip(ROUND_S / max(one_s, 1e-6), 3, RUNS_PER_ROUND_MAX))


def _time_runs(session: ort.InferenceSession, feed: Mapping[str, np.ndarray], runs: int) -> np.ndarray:
    taken = np.empty(runs)
    for i in range(runs):
        start = time.perf_counter()
        session.run(None, feed)
        taken[i] = time.perf_counter() - start
    return taken
