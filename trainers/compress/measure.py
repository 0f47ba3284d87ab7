"""What a graph costs and what it answers: predictions, paired latency, size.

Timing follows docs/compress.md: fixed threads, warm-up, the two graphs in alternating rounds, the median of rounds.
On a small shared machine the ratio of the two is meaningful, the absolute time much less.

Invariant: two graphs that are compared ran in the same process, on the same rows, in alternation.

Covered: ONNX Runtime on the CPU. Not covered: engines on a GPU (trainers/export/tensorrt.py).
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnxruntime as ort

from trainers.export.session import open_session, run_batches

WARMUP_RUNS = 5
ROUNDS = 9  # odd, so that the median is a measured round
ROUND_S = 0.03  # long against the clock's and the scheduler's grain of about 1 ms
RUNS_PER_ROUND_MAX = 400


@dataclass(frozen=True)
class Latency:
    """Latency of one batch in milliseconds."""

    batch_size: int
    p50_ms: float
    p99_ms: float
    speedup: float
    """Median over rounds of baseline's time / this graph's time."""


def predict_graph(path: Path, inputs: Mapping[str, np.ndarray], *, threads: int = 1) -> np.ndarray:
    """First output of all rows: (N, …)."""
    outputs = run_batches(open_session(path, threads=threads), inputs)
    return next(iter(outputs.values()))


def paired_latency(
    baseline: Path, candidate: Path, inputs: Mapping[str, np.ndarray], *, batch_size: int = 1, threads: int = 1
) -> tuple[Latency, Latency]:
    """Latency of both graphs at one batch size, measured in alternation."""
    feed = tile_rows(inputs, batch_size)
    sessions = [open_session(path, threads=threads) for path in (baseline, candidate)]
    runs = [_runs_per_round(session, feed) for session in sessions]
    times: list[list[np.ndarray]] = [[], []]
    for _ in range(ROUNDS):
        for which in (0, 1):
            times[which].append(_time_runs(sessions[which], feed, runs[which]))
    medians = [np.array([np.median(round_s) for round_s in rounds]) for rounds in times]
    speedup = float(np.median(medians[0] / medians[1]))
    return (_latency(times[0], batch_size, 1.0), _latency(times[1], batch_size, speedup))


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


def _latency(rounds: list[np.ndarray], batch_size: int, speedup: float) -> Latency:
    every = np.concatenate(rounds) * 1e3
    return Latency(
        batch_size=batch_size,
        p50_ms=float(np.median([np.median(one) for one in rounds]) * 1e3),
        p99_ms=float(np.percentile(every, 99)),
        speedup=speedup,
    )
