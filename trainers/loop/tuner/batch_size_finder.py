"""How large a micro-batch should be: by trying, on the real model and data.

The size doubles until it does not fit or reaches the worker's share of the global batch, then bisects between the last
that fits and the first that does not; of those that fit, the smallest within KNEE of the best speed is taken (larger
ones would only cost memory). A run on a CPU takes the largest up to MICRO_BATCH_CPU_MAX instead, and
`train.deterministic` the largest: timings differ from run to run, and the same spec is to give the same bytes.

Invariant: all workers try the same sizes in the same order and the smallest worker decides; weights, buffers,
optimizer and random states are afterwards what they were before.

Covered: on a GPU the allocator's peak against what the driver reports as free, and out-of-memory errors; on a CPU the
estimate against a stated budget; any number of workers. Not covered: sizes beyond the worker's share (the global
batch is a fact of the spec). The GPU's part has not been run on one.
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import numpy as np
import torch
from torch import nn

from cluster.atomic import digest_json, write_json
from cluster.bundle.signature import TensorSpec
from cluster.errors import MemoryShortError
from cluster.spec.resolve import BATCH_SIZE_PER_WORKER_CPU
from cluster.spec.train import TrainSpec
from trainers.loop.checkpointing.snapshot import preserved
from trainers.loop.data.sampler import Window, epoch_order
from trainers.loop.distributed.collectives import gather_texts, sum_over_workers
from trainers.loop.distributed.memory_short import is_out_of_memory
from trainers.loop.state import Job, State
from trainers.loop.step import accumulate
from trainers.loop.tuner.memory_estimate import estimate_memory

KNEE = 0.95  # of the best rows/s: timings of one size vary by about 5 %
SHARE_BOUND = "its share of the global batch"
RESOLUTION = 32  # bisect to within a 32nd: 3 %, two trials more than an eighth
MICRO_BATCH_CPU_MAX = BATCH_SIZE_PER_WORKER_CPU
HEAD_ROOM = 0.9  # share of the budget that may be used: allocators fragment
BUDGET_SHIFT = 28  # free memory changes all the time: for the cache a quarter of a GiB more or less is the same
MIN_TRIAL_S = 0.05  # shorter timings say nothing


@dataclass(frozen=True)
class SizeTrial:
    """One size that was tried."""

    rows: int
    fits: bool
    rows_per_s: float = 0.0


@dataclass(frozen=True)
class SizeReport:
    """What was found."""

    rows: int
    reason: str
    trials: tuple[SizeTrial, ...] = ()


def search_size(try_size: Callable[[int], SizeTrial], limit: int, bound: str = SHARE_BOUND) -> SizeReport:
    """Double, bisect, take the knee. `bound`: what `limit` is. Raises MemoryShortError when one row does not fit."""
    trials: list[SizeTrial] = []

    def tried(rows: int) -> bool:
        trials.append(try_size(rows))
        return trials[-1].fits

    fits, misses = 0, limit + 1
    rows = min(2, limit)  # batch norm cannot train on one row
    while rows <= limit:
        if not tried(rows):
            misses = rows
            break
        fits = rows
        if rows == limit:
            break
        rows = min(2 * rows, limit)
    while misses - fits > max(1, fits // RESOLUTION) and fits < limit:
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
    knee = min(trial.rows for trial in fitting if trial.rows_per_s >= KNEE * best) if best else fits
    bound = bound if fits == limit else "memory"
    speed = f"; {knee} reach {KNEE:.0%} of the best speed" if best else ""
    return SizeReport(knee, f"{fits} rows a worker fit (bound by {bound}){speed}", tuple(trials))


def size_micro_batch(job: Job, state: State) -> SizeReport:
    """What `batch_size_per_worker: auto` becomes when a run starts. Collective; the same on all workers."""
    sizing = job.request.sizing
    assert sizing is not None
    on_cpu = job.device.type == "cpu"
    budget = sizing.budget_bytes or (available_bytes(job) if on_cpu else None)
    limit = MICRO_BATCH_CPU_MAX if on_cpu else None
    timed = not (on_cpu or job.request.train.deterministic)
    return probe_micro_batch(job, state, budget_bytes=budget, cache=sizing.cache, limit=limit, timed=timed)


def size_by_estimate(
    model: nn.Module, inputs: tuple[TensorSpec, ...], train: TrainSpec, share: int, budget_bytes: int
) -> SizeReport:
    """What a probe on a CPU will find with this budget, without a run: for `manta explain`."""

    def try_size(rows: int) -> SizeTrial:
        return SizeTrial(rows, estimate_memory(model, inputs, rows, train).total <= HEAD_ROOM * budget_bytes)

    return _with_budget(search_size(try_size, *_limit(share, MICRO_BATCH_CPU_MAX)), budget_bytes)


def available_bytes(job: Job) -> int:
    """This worker's share of the memory that is free on its node."""
    import psutil

    here = int(os.environ.get("LOCAL_WORLD_SIZE", job.world.size))
    return psutil.virtual_memory().available // max(1, here)


def probe_micro_batch(
    job: Job,
    state: State,
    *,
    budget_bytes: int | None = None,
    cache: Path | None = None,
    limit: int | None = None,
    timed: bool = True,
) -> SizeReport:
    """Try sizes under the run's real configuration. Collective. `budget_bytes`: of one worker; None: no bound on a
    CPU, what is free on a GPU. `limit`: largest size besides the worker's share. `timed`: the knee is taken."""
    most, bound = _limit(_smallest_share(job), limit)
    key = _cache_key(job, state, [budget_bytes and budget_bytes >> BUDGET_SHIFT, most, timed])
    if (known := _cached(cache, key, job)) is not None:
        return known
    with preserved(job, state):
        _ = state.quick_step.ready  # the optimizer's moments take their place
        room = _Room(job, budget_bytes)
        report = search_size(lambda rows: _try(job, state, rows, room, timed), most, bound)
    report = _with_budget(report, room.budget_bytes)
    _remember(cache, key, report, job)
    return report


class _Room:
    """Whether a size fits beside what is there."""

    def __init__(self, job: Job, budget_bytes: int | None) -> None:
        self.job = job
        if budget_bytes is None and job.device.type == "cuda":
            free, _ = torch.cuda.mem_get_info(job.device)  # cudaMemGetInfo: what NVML shows as free, less its reserve
            budget_bytes = free + torch.cuda.memory_reserved(job.device)
        self.budget_bytes = budget_bytes

    def may_fit(self, state: State, rows: int) -> bool:
        """Before a trial: on a CPU only the estimate helps, for the kernel kills what is too large."""
        if self.job.device.type == "cuda":
            torch.cuda.empty_cache()
            torch.cuda.reset_peak_memory_stats(self.job.device)
            return True
        if self.budget_bytes is None:
            return True
        try:
            needed = estimate_memory(state.model, self.job.inputs, rows, self.job.request.train).total
        except Exception:  # noqa: BLE001 - a model may raise anything on meta tensors: the trial with data decides
            return True
        return needed <= HEAD_ROOM * self.budget_bytes

    def has_fit(self) -> bool:
        """After one: the allocator's peak, fragments included."""
        if self.job.device.type != "cuda" or self.budget_bytes is None:
            return True
        return torch.cuda.max_memory_reserved(self.job.device) <= HEAD_ROOM * self.budget_bytes


def _try(job: Job, state: State, rows: int, room: _Room, timed: bool) -> SizeTrial:
    """One forward and backward of `rows` rows a worker, repeated until it can be timed. Agreed by all workers."""
    fits, speed = room.may_fit(state, rows), 0.0
    if fits:
        state.micro_size = rows
        own = np.resize(epoch_order(job.request.seed, 0, job.train.num_rows), rows)
        window = Window(0, 0, own, 0, rows, state.norms.rows)
        done, started = 0, time.monotonic()
        while not done or (timed and time.monotonic() - started < MIN_TRIAL_S):
            error = _accumulate_alone(job, state, window)
            if error is not None:
                if not is_out_of_memory(error):
                    raise error
                fits = False
                break
            if job.device.type == "cuda":
                torch.cuda.synchronize(job.device)
            done += rows
        fits = fits and room.has_fit()
        speed = done / max(1e-9, time.monotonic() - started) if timed else 0.0
    failed, speeds = sum_over_workers([not fits, speed], job.world, job.device)
    return SizeTrial(rows, failed == 0, speeds)


def _accumulate_alone(job: Job, state: State, window: Window) -> Exception | None:
    """The step's own forward and backward, without sending: sizes are tried by each worker at its own pace."""
    return accumulate(job, state, window, job.train.weight_of(window.rows), False, send=False)


def _limit(share: int, cap: int | None) -> tuple[int, str]:
    """Largest size to try, and what it is bound by."""
    if cap is not None and cap < share:
        return cap, f"the most that a CPU gains from, {cap}"
    return max(1, share), SHARE_BOUND


def _smallest_share(job: Job) -> int:
    """Rows of the smallest worker: shares differ by at most one row."""
    return job.request.batch.for_workers(job.world.size).smallest_share


def _with_budget(report: SizeReport, budget_bytes: int | None) -> SizeReport:
    if budget_bytes is None:
        return report
    small = budget_bytes < 1 << 30
    figure = f"{budget_bytes / (1 << 20):.3g} MiB" if small else f"{budget_bytes / (1 << 30):.1f} GiB"
    room = f"in {figure} less {1 - HEAD_ROOM:.0%} head-room"
    return replace(report, reason=f"{report.reason}, {room}")


def _cache_key(job: Job, state: State, bounds: list[int | bool | None]) -> str:
    """(model, signature, precision, device, workers, what else takes memory, bounds)."""
    train = job.request.train
    shapes = [[name, list(tensor.shape)] for name, tensor in state.model.state_dict().items()]
    device = torch.cuda.get_device_name(job.device) if job.device.type == "cuda" else job.device.type
    rest = [train.optimizer.name, train.ema is not None, train.channels_last, train.compile]
    return digest_json(
        [
            shapes,
            str(state.model),
            [tensor.model_dump(mode="json") for tensor in job.inputs],
            [train.precision, device, job.world.size, *rest],
            bounds,
        ]
    )


def _cached(cache: Path | None, key: str, job: Job) -> SizeReport | None:
    """What rank 0 finds: all must go the same way."""
    if cache is None:
        return None
    path, text = cache / f"{key}.json", ""
    if job.world.rank == 0 and path.exists():
        text = path.read_text(encoding="utf-8")
    text = gather_texts(text, job.world, job.device)[0]
    if not text:
        return None
    raw = json.loads(text)
    return SizeReport(raw["rows"], raw["reason"], tuple(SizeTrial(**trial) for trial in raw["trials"]))


def _remember(cache: Path | None, key: str, report: SizeReport, job: Job) -> None:
    if cache is not None and job.world.rank == 0:
        cache.mkdir(parents=True, exist_ok=True)
        write_json(cache / f"{key}.json", asdict(report))
