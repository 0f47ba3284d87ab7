"""Learning rate as a pure function of the update index.

    factor(u) = (u + 1) / W            for u < W, the warm-up
    factor(u) = shape((u - W) / (T - 1 - W))   after it; shape(0) = 1 and shape(1) = floor

Invariant: the first update is not 0, the peak is at the end of warm-up (updates W - 1 and W), the last update
T - 1 is exactly at the floor and it stays there; workers, micro-batches and accumulation do not occur in it, so
that a resume restores one integer.

Covered: ten shapes, a function of the user's, scaling of the peak with the global batch. Not covered: reduce-on-plateau
(plateau.py), which needs metrics.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from functools import cache
from typing import Any

from cluster.errors import SpecError
from cluster.spec.optimizer import OptimizerSpec, ScheduleSpec
from trainers.loop.parts.named import load_named

ROUNDING = 1e-12  # of a cycle: a restart that falls on an update is that update's
ONE_CYCLE_START = 1 / 25  # the paper's and torch's initial division (arXiv:1708.07120)


def settled(schedule: ScheduleSpec, updates_of_epochs: Sequence[int], peak: float) -> ScheduleSpec:
    """The same schedule with its warm-up in updates and its floor as a share of the peak."""
    change: dict[str, Any] = {}
    if schedule.warmup_epochs is not None:
        whole = int(schedule.warmup_epochs)
        part = schedule.warmup_epochs - whole
        partly = part * updates_of_epochs[whole] if whole < len(updates_of_epochs) else 0.0
        change = {"warmup_updates": round(sum(updates_of_epochs[:whole]) + partly), "warmup_epochs": None}
    if schedule.eta_min is not None:
        change |= {"floor": min(1.0, schedule.eta_min / peak), "eta_min": None}
    return schedule.model_copy(update=change) if change else schedule


def learning_rate_factor(schedule: ScheduleSpec, update: int, updates_total: int) -> float:
    """Share of the peak learning rate at `update`, counted from 0, by a settled schedule. Raises SpecError for a
    function of the user's that gives no such share."""
    if schedule.is_own:
        return _own(schedule.name, update, updates_total)
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
    wanted = schedule.warmup * updates_total if schedule.warmup_updates is None else schedule.warmup_updates
    if wanted == 0 or schedule.is_own:
        return 0
    return max(1, min(updates_total - 1, round(wanted)))


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
    if schedule.t_mult == 1.0:
        position = progress * schedule.cycles
        return _between((1 + math.cos(math.pi * (position - math.floor(position)))) / 2, schedule)
    lengths = [schedule.t_mult**cycle for cycle in range(schedule.cycles)]
    position = progress * sum(lengths)
    for length in lengths[:-1]:
        if position < length * (1 - ROUNDING):
            break
        position = max(0.0, position - length)
    else:
        length = lengths[-1]
    return _between((1 + math.cos(math.pi * min(1.0, position / length))) / 2, schedule)


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


@cache
def _function(name: str) -> Callable[[int, int], Any]:
    return load_named(name, "train.schedule.name")


def _own(name: str, update: int, updates_total: int) -> float:
    found = _function(name)(update, updates_total)
    if isinstance(found, int | float) and math.isfinite(found) and found >= 0:
        return float(found)
    raise SpecError(
        f"Cannot use the schedule {name}",
        found=f"it returned {found!r} for update {update} of {updates_total}",
        rule="it returns the share of the peak learning rate, a number that is finite and not negative",
        remedy="Mend the function.",
    )


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
