"""Learning rate as a pure function of the update index.

    factor(u) = (u + 1) / W            for u < W, the warm-up
    factor(u) = shape((u - W) / (T - 1 - W))   after it; shape(0) = 1 and shape(1) = floor

Invariant: the first update is not 0, the peak is at the end of warm-up (updates W - 1 and W), the last update
T - 1 is exactly at the floor and it stays there; workers, micro-batches and accumulation do not occur in it, so
that a resume restores one integer.

Covered: ten shapes, scaling of the peak with the global batch. Not covered: reduce-on-plateau (plateau.py), which
needs metrics.
"""

from __future__ import annotations

import math
from collections.abc import Callable

from cluster.spec.train import OptimizerSpec, ScheduleSpec

ONE_CYCLE_START = 1 / 25  # the paper's and torch's initial division (arXiv:1708.07120)


def learning_rate_factor(schedule: ScheduleSpec, update: int, updates_total: int) -> float:
    """Share of the peak learning rate at `update`, counted from 0."""
    warmup = warmup_updates(schedule, updates_total)
    if update < warmup:
        share = (update + 1) / warmup
        if schedule.name == "one_cycle":
            return ONE_CYCLE_START + (1 - ONE_CYCLE_START) * (1 - math.cos(math.pi * share)) / 2
        return share
    span = updates_total - 1 - warmup
    progress = 1.0 if span <= 0 else min(1.0, (update - warmup) / span)
    if schedule.name == "constant":
        return 1.0
    return SHAPES[schedule.name](progress, schedule, max(1, warmup), max(1, span))


def warmup_updates(schedule: ScheduleSpec, updates_total: int) -> int:
    """Number of updates that rise. At least one where there is a warm-up at all, and never the last one."""
    if schedule.warmup == 0:
        return 0
    return max(1, min(updates_total - 1, round(schedule.warmup * updates_total)))


def peak_learning_rate(optimizer: OptimizerSpec, batch_size_global: int) -> float:
    """The peak after scaling with the global batch."""
    ratio = batch_size_global / optimizer.scaling_base
    factor = {"none": 1.0, "linear": ratio, "sqrt": math.sqrt(ratio)}[optimizer.scaling]
    return optimizer.learning_rate * factor


def _between(share: float, schedule: ScheduleSpec) -> float:
    """`share` 1 is the peak, 0 the floor; exact at both ends."""
    return schedule.floor + (1 - schedule.floor) * share if share else schedule.floor


def _linear(progress: float, schedule: ScheduleSpec, warmup: int, span: int) -> float:
    return _between(1 - progress, schedule)


def _cosine(progress: float, schedule: ScheduleSpec, warmup: int, span: int) -> float:
    return _between((1 + math.cos(math.pi * progress)) / 2, schedule)


def _cosine_restarts(progress: float, schedule: ScheduleSpec, warmup: int, span: int) -> float:
    if progress >= 1:
        return schedule.floor
    position = progress * schedule.cycles
    return _between((1 + math.cos(math.pi * (position - math.floor(position)))) / 2, schedule)


def _polynomial(progress: float, schedule: ScheduleSpec, warmup: int, span: int) -> float:
    return _between((1 - progress) ** schedule.power, schedule)


def _step(progress: float, schedule: ScheduleSpec, warmup: int, span: int) -> float:
    passed = sum(progress >= milestone for milestone in schedule.milestones)
    return schedule.floor ** (passed / len(schedule.milestones))


def _exponential(progress: float, schedule: ScheduleSpec, warmup: int, span: int) -> float:
    return schedule.floor**progress


def _inverse_sqrt(progress: float, schedule: ScheduleSpec, warmup: int, span: int) -> float:
    """sqrt(W / u), stretched so that it ends at the floor instead of wherever the number of updates leads."""
    end = math.sqrt(warmup / (warmup + span))
    now = math.sqrt(warmup / (warmup + progress * span))
    return _between(max(0.0, (now - end) / (1 - end)), schedule)


def _wsd(progress: float, schedule: ScheduleSpec, warmup: int, span: int) -> float:
    """Warm-up, stable, decay (arXiv:2404.06395)."""
    return _between(min(1.0, (1 - progress) / schedule.decay), schedule)


SHAPES: dict[str, Callable[[float, ScheduleSpec, int, int], float]] = {
    "linear": _linear,
    "cosine": _cosine,
    "cosine_restarts": _cosine_restarts,
    "polynomial": _polynomial,
    "step": _step,
    "exponential": _exponential,
    "inverse_sqrt": _inverse_sqrt,
    "wsd": _wsd,
    "one_cycle": _cosine,
}
"""Name -> `shape(progress, schedule, warm-up updates, updates after it)`."""
