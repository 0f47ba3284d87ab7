"""Which learning rate trains: a range test on the real model and data (arXiv:1506.01186).

The rate rises exponentially from window to window; the steepest fall of the smoothed loss is suggested.

Invariant: weights, buffers, optimizer and random states are afterwards what they were before; all workers get the same
report.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from cluster.telemetry.events import NullSink
from trainers.loop.checkpointing.snapshot import preserved
from trainers.loop.data.sampler import Window, epoch_order, window_of
from trainers.loop.state import Job, State
from trainers.loop.step import update

SMOOTHING = 0.9  # of the range test's loss; its window is about ten updates
RANGE_REASON = "a range test found that the loss falls fastest there"
BLOW_UP = 4.0  # the range test ends when the smoothed loss is this many times its best


@dataclass(frozen=True)
class RangeReport:
    """The curve of a learning-rate range test."""

    learning_rates: tuple[float, ...]
    losses: tuple[float, ...]
    """Smoothed."""
    suggestion: float


def range_test(job: Job, state: State, *, low: float = 1e-6, high: float = 1.0, windows: int = 100) -> RangeReport:
    """Train with a rising learning rate and put everything back. Collective; the same report on all workers."""
    rates, smoothed, average, best = [], [], 0.0, math.inf
    job = replace(job, sink=NullSink())  # it goes on until an update blows up: no finding about the training
    with preserved(job, state):
        for number in range(windows):
            rate = low * (high / low) ** (number / max(1, windows - 1))
            window = _window(job, state, number)
            report = update(job, state, window, learning_rate=rate)
            loss = report.loss_sum / report.weight if report.weight else 0.0
            average = SMOOTHING * average + (1 - SMOOTHING) * loss
            value = average / (1 - SMOOTHING ** (number + 1))
            if not math.isfinite(value) or value > BLOW_UP * best:
                break
            best = min(best, value)
            rates.append(rate)
            smoothed.append(value)
    return RangeReport(tuple(rates), tuple(smoothed), steepest(rates, smoothed))


def steepest(rates: Sequence[float], losses: Sequence[float]) -> float:
    """Learning rate at which the loss falls fastest per factor of learning rate; the first rate of a short curve."""
    if len(losses) < 3:
        return rates[0] if rates else 0.0
    slopes = np.gradient(np.asarray(losses), np.log(np.asarray(rates)))
    return float(rates[int(np.argmin(slopes))])


def _window(job: Job, state: State, number: int) -> Window:
    batch = job.request.batch.batch_size_global
    per_epoch = max(1, job.train.num_rows // batch)
    order = epoch_order(job.request.seed, number // per_epoch, job.train.num_rows)
    return window_of(order, number // per_epoch, number % per_epoch, batch, job.world, state.norms.rows)
