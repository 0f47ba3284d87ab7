"""How large a micro-batch should be, and which learning rates train: by trying, on the real model and data.

    micro-batch     doubles until it does not fit or reaches the worker's share of the global batch, then bisects
                    between the last that fits and the first that does not; of those that fit, the smallest within
                    KNEE of the best speed is taken (larger ones would only cost memory)
    learning rate   rises exponentially from window to window; the steepest fall of the smoothed loss is suggested

Invariant: all workers try the same sizes in the same order and the smallest worker decides; weights, buffers,
optimizer and random states are afterwards what they were before.

Covered: memory by the device's own out-of-memory on a GPU, by a stated budget of the estimate on a CPU; any number of
workers. Not covered: sizes beyond the worker's share (the global batch is a fact of the spec).
"""

from __future__ import annotations

import json
import math
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np

from cluster.atomic import digest_json, write_json
from cluster.errors import MemoryShortError
from trainers.loop import snapshot
from trainers.loop.exchange import sum_over_workers
from trainers.loop.memory import estimate_memory
from trainers.loop.sampler import Window, epoch_order, part, window_of
from trainers.loop.state import Job, State
from trainers.loop.step import _accumulate, is_out_of_memory, update

KNEE = 0.95  # of the best rows/s: timings of one size vary by about 5 %
HEAD_ROOM = 0.9  # share of the budget that may be used: allocators fragment
MIN_TRIAL_S = 0.05  # shorter timings say nothing
SMOOTHING = 0.9  # of the range test's loss; its window is about ten updates
BLOW_UP = 4.0  # the range test ends when the smoothed loss is this many times its best


@dataclass(frozen=True)
class Trial:
    """One size that was tried."""

    rows: int
    fits: bool
    rows_per_s: float = 0.0


@dataclass(frozen=True)
class SizeReport:
    """What was found."""

    rows: int
    reason: str
    trials: tuple[Trial, ...] = ()


@dataclass(frozen=True)
class RangeReport:
    """The curve of a learning-rate range test."""

    learning_rates: tuple[float, ...]
    losses: tuple[float, ...]
    """Smoothed."""
    suggestion: float


def search_size(try_size: Callable[[int], Trial], limit: int) -> SizeReport:
    """Double, bisect, take the knee. Raises MemoryShortError when one row does not fit."""
    trials: list[Trial] = []

    def tried(rows: int) -> bool:
        trials.append(try_size(rows))
        return trials[-1].fits

    fits, misses = 0, limit + 1
    rows = 1
    while rows <= limit:
        if not tried(rows):
            misses = rows
            break
        fits = rows
        if rows == limit:
            break
        rows = min(2 * rows, limit)
    while misses - fits > max(1, fits // 8) and fits < limit:  # to within an eighth: finer costs more than it gives
        rows = (fits + misses) // 2
        if tried(rows):
            fits = rows
        else:
            misses = rows
    fitting = [trial for trial in trials if trial.fits]
    if not fitting:
        raise MemoryShortError(
            "Cannot size the micro-batch",
            found="memory does not suffice for one row",
            remedy="Choose a smaller model or a larger machine.",
        )
    best = max(trial.rows_per_s for trial in fitting)
    knee = min(trial.rows for trial in fitting if trial.rows_per_s >= KNEE * best)
    most = max(trial.rows for trial in fitting)
    bound = "the worker's share of the global batch" if most == limit else "memory"
    return SizeReport(
        knee, f"up to {most} rows fit (bound by {bound}); {knee} reach {KNEE:.0%} of the speed", tuple(trials)
    )


def probe_micro_batch(
    job: Job, state: State, *, budget_bytes: int | None = None, cache: Path | None = None
) -> SizeReport:
    """Try sizes under the run's real configuration. Collective. `budget_bytes`: of one worker; on a CPU it decides
    what fits (None: no bound), on a GPU the device does."""
    key = _cache_key(job, state, budget_bytes)
    if (known := _cached(cache, key)) is not None:
        return known
    start, stop = part(job.request.batch.batch_size_global, job.world)
    limit = max(1, int(_smallest(job, stop - start)))
    before = snapshot.take(job, state)
    held = {file: {name: t.clone() for name, t in tensors.items()} for file, tensors in before.tensors.items()}
    micro = state.micro_size
    try:
        report = search_size(lambda rows: _try(job, state, rows, budget_bytes), limit)
    finally:
        snapshot.restore(job, state, snapshot.Snapshot(held, before.state))
        state.micro_size = micro
        state.exchange.clear()
        state.optimizer.zero_grad(set_to_none=False)
    _remember(cache, key, report)
    return report


def range_test(job: Job, state: State, *, low: float = 1e-6, high: float = 1.0, windows: int = 100) -> RangeReport:
    """Train with a rising learning rate and put everything back. Collective; the same report on all workers."""
    before = snapshot.take(job, state)
    held = {file: {name: t.clone() for name, t in tensors.items()} for file, tensors in before.tensors.items()}
    rates, smoothed, average, best = [], [], 0.0, math.inf
    try:
        for number in range(windows):
            rate = low * (high / low) ** (number / max(1, windows - 1))
            window = _window(job, number)
            report = update(job, state, window, learning_rate=rate)
            loss = report.loss_sum / report.weight if report.weight else 0.0
            average = SMOOTHING * average + (1 - SMOOTHING) * loss
            value = average / (1 - SMOOTHING ** (number + 1))
            if not math.isfinite(value) or value > BLOW_UP * best:
                break
            best = min(best, value)
            rates.append(rate)
            smoothed.append(value)
    finally:
        snapshot.restore(job, state, snapshot.Snapshot(held, before.state))
    return RangeReport(tuple(rates), tuple(smoothed), steepest(rates, smoothed))


def steepest(rates: Sequence[float], losses: Sequence[float]) -> float:
    """Learning rate at which the loss falls fastest per factor of learning rate; the first rate of a short curve."""
    if len(losses) < 3:
        return rates[0] if rates else 0.0
    slopes = np.gradient(np.asarray(losses), np.log(np.asarray(rates)))
    return float(rates[int(np.argmin(slopes))])


def _try(job: Job, state: State, rows: int, budget_bytes: int | None) -> Trial:
    """One forward and backward of `rows` rows a worker, repeated until it can be timed. Agreed by all workers."""
    fits = True
    if job.device.type == "cpu" and budget_bytes is not None:
        needed = estimate_memory(state.model, job.inputs, rows, job.request.train).total
        fits = needed <= HEAD_ROOM * budget_bytes
    speed = 0.0
    if fits:
        state.micro_size = rows
        own = np.resize(epoch_order(job.request.seed, 0, job.train.num_rows), rows)
        window = Window(0, 0, own, 0, rows)
        done, started = 0, time.monotonic()
        while time.monotonic() - started < MIN_TRIAL_S:
            error = _accumulate_alone(job, state, window)
            if error is not None:
                if not is_out_of_memory(error):
                    raise error
                fits = False
                break
            done += rows
        speed = done / max(1e-9, time.monotonic() - started)
    failed, speeds = sum_over_workers([not fits, speed], job.world, job.device)
    return Trial(rows, failed == 0, speeds)


def _accumulate_alone(job: Job, state: State, window: Window) -> Exception | None:
    """The step's own forward and backward, without sending: sizes are tried by each worker at its own pace."""
    return _accumulate(job, state, window, job.train.weight_of(window.rows), False, send=False)


def _window(job: Job, number: int) -> Window:
    batch = job.request.batch.batch_size_global
    per_epoch = max(1, job.train.num_rows // batch)
    order = epoch_order(job.request.seed, number // per_epoch, job.train.num_rows)
    return window_of(order, number // per_epoch, number % per_epoch, batch, job.world)


def _smallest(job: Job, value: int) -> float:
    """Over all workers: shares differ by at most one row."""
    return job.request.batch.batch_size_global // job.world.size if job.world.size > 1 else value


def _cache_key(job: Job, state: State, budget_bytes: int | None) -> str:
    """(model, signature, precision, device, workers, bounds)."""
    shapes = [[name, list(tensor.shape)] for name, tensor in state.model.state_dict().items()]
    return digest_json(
        [
            shapes,
            str(state.model),
            [tensor.model_dump(mode="json") for tensor in job.inputs],
            job.request.train.precision,
            str(job.device.type),
            job.world.size,
            job.request.batch.batch_size_global,
            budget_bytes,
        ]
    )


def _cached(cache: Path | None, key: str) -> SizeReport | None:
    if cache is None or not (cache / f"{key}.json").exists():
        return None
    raw = json.loads((cache / f"{key}.json").read_text(encoding="utf-8"))
    return SizeReport(raw["rows"], raw["reason"], tuple(Trial(**trial) for trial in raw["trials"]))


def _remember(cache: Path | None, key: str, report: SizeReport) -> None:
    if cache is not None:
        cache.mkdir(parents=True, exist_ok=True)
        write_json(cache / f"{key}.json", asdict(report))
