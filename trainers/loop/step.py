"""One update: the visible heart of training.

    gradient = d/dθ [ Σ over the global batch of w_i · ℓ_i ] / Σ w_i

K micro-batches, W workers: neither occurs in the formula. Each micro-batch adds the gradient of its loss *sum*,
divided by the weight of the whole window (known before the first forward); the exchange adds up the workers.

An update is queued by `start_update` and read by `finish_update`: on a GPU the host reads the numbers of an update once
the backward of the next one is queued, and so never waits for the device in a steady run.

Invariant: after `update` either everything moved (parameters, optimizer state, EMA, batch norm's statistics, update
index) or, on a window that is skipped, nothing did but the data cursor and the fp16 scale.

Covered: accumulation, AMP, clipping, skips, out-of-memory retry, agreement on failures. Not covered: order of
windows (loop.py).
"""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import torch

from cluster.errors import DivergedError, MemoryShortError
from cluster.telemetry.events import UpdateSkipped
from trainers.loop.data.sampler import Window
from trainers.loop.diagnostics.inspector import locate_nonfinite
from trainers.loop.distributed.gradient_exchange import TIME_OVER, ReducedScalars
from trainers.loop.distributed.joint_failure import agreed, raise_together
from trainers.loop.distributed.memory_short import caught, is_out_of_memory
from trainers.loop.parts import rng
from trainers.loop.parts.clipping import clip_gradient, clip_on_device
from trainers.loop.parts.optimizer import add_l1, set_learning_rate
from trainers.loop.parts.precision import autocast, check_scale, found_inf, scale_of
from trainers.loop.parts.quick_step import left_out
from trainers.loop.parts.schedule import learning_rate_factor, settled
from trainers.loop.state import Job, PendingUpdate, State, UpdateReport

ROWS_TOLD = 20  # of a skipped window, in its record
SHRINK_RESOLUTION = 32  # bisect to within a 32nd, as the finder of batch sizes does


def update(
    job: Job, state: State, window: Window, *, want_stop: float = 0.0, learning_rate: float | None = None
) -> UpdateReport:
    """Forward, backward, exchange, step. All workers call it with the same window; blocks until all have.

    `learning_rate` replaces the schedule's (range test).
    """
    start_update(job, state, window, want_stop=want_stop, learning_rate=learning_rate)
    return finish_update(job, state)[0]


def start_update(
    job: Job, state: State, window: Window, *, want_stop: float = 0.0, learning_rate: float | None = None
) -> list[UpdateReport]:
    """Queue an update: it is pending until `finish_update`. Returns the report of the one before, if that was pending.

    The one before is finished when this one's backward is queued and before its step: the device has work while the
    host waits for numbers of the past, and the learning rate and the averages are those of the updates really made.
    """
    weight = job.train.weight_of(window.rows)
    scalars = compute_gradient(job, state, window, weight, want_stop)
    before = finish_update(job, state)
    if is_over_budget(job, state):  # what is queued now is not applied: the caller ends the run or rolls back
        return before
    if learning_rate is None:
        learning_rate = learning_rate_now(job, state)
    numbers, arrived = _noted_step(job, state, learning_rate, scalars, weight)
    state.cursor.window += 1
    state.pending = PendingUpdate(window, weight, learning_rate, numbers, arrived)
    return before


def finish_update(job: Job, state: State) -> list[UpdateReport]:
    """Read what the pending update did, if there is one, and move cursor and averages with it. Waits for the device."""
    if (this := state.pending) is None:
        return []
    state.pending = None
    if this.arrived is not None:
        this.arrived.synchronize()
    loss_sum, stop, norm, skipped, scale = this.numbers.tolist()
    made, cursor = this.weight > 0 and not skipped, state.cursor
    state.rows_seen += len(this.window.rows)
    if made:
        if state.ema:
            state.ema.update(cursor.update)
        cursor.update += 1
        cursor.loss_sum += loss_sum
        cursor.weight_sum += this.weight
        cursor.nonfinite.clear()
    else:
        cursor.skipped += 1
        if this.weight > 0:
            cursor.nonfinite.append((this.window.epoch, this.window.index))
            _say_skipped(job, state, this.window)
        check_scale(scale, lambda: locate_nonfinite(job, state, this.window))
    stops = bool(stop % TIME_OVER), stop >= TIME_OVER
    return [UpdateReport(made, loss_sum, this.weight, norm, this.learning_rate, *stops, this.window)]


def _say_skipped(job: Job, state: State, window: Window) -> None:
    """Which rows made a window's gradient not finite. In the scaler's search for a scale none did: it is not said."""
    if job.world.rank != 0:
        return
    bad = job.train.not_finite(window.rows)
    if state.scaler is None or len(bad):
        rows = sorted(bad.tolist())
        job.sink.emit(
            UpdateSkipped(
                stage=job.request.stage,
                epoch=window.epoch + 1,
                window=window.index,
                update=state.cursor.update,
                rows=rows[:ROWS_TOLD],
                num_rows=len(rows),
            )
        )


def learning_rate_now(job: Job, state: State) -> float:
    """Of the next update."""
    peak, schedule = job.peak_learning_rate, job.schedule
    if state.learning_rate_found is not None:
        peak *= state.learning_rate_found / job.request.train.optimizer.learning_rate
    if (asked := job.request.train.schedule).eta_min is not None:
        schedule = settled(asked, job.windows_of_epochs, peak)
    factor = learning_rate_factor(schedule, state.cursor.update, job.updates_total)
    return peak * factor * (state.plateau.factor if state.plateau else 1.0)


def compute_gradient(job: Job, state: State, window: Window, weight: float, want_stop: float) -> ReducedScalars:
    """Fill the flat gradient, summed over workers. Retries with smaller micro-batches when memory is short."""
    search = True
    while True:
        snapshot = _Snapshot(state)
        error = accumulate(job, state, window, weight, want_stop)
        scalars = state.exchange.reduce()
        # alone, the host knows both: nothing is read from the device
        failed, unreached = (0.0, state.exchange.missing) if job.world.size == 1 else scalars.flags.tolist()
        if error is None and not failed:
            state.exchange.settle_unreached(unreached, had_rows=window.stop > window.start)
            return scalars
        _handle_failure(job, state, error)  # raises, unless a smaller micro-batch may help
        snapshot.restore(state)
        _shrink(job, state, window, weight, search=search)
        search = False  # what was found does not suffice either: memory is in pieces
        snapshot.restore(state)


def accumulate(
    job: Job, state: State, window: Window, weight: float, want_stop: float, *, send: bool = True
) -> Exception | None:
    """The gradient of this worker's part. An error is returned, so that the exchange is joined anyway."""
    exchange = state.exchange
    exchange.clear()
    if state.failure is not None:
        exchange.fail()
        return state.failure
    if want_stop:
        exchange.want_stop(want_stop)
    if weight == 0:
        return None
    error = caught(lambda: forward_backward(job, state, window, 1 / weight, send=send))
    if error is not None:
        exchange.fail()
    elif window.stop > window.start:
        exchange.note_unreached()
    return error


def forward_backward(job: Job, state: State, window: Window, inverse_weight: float, *, send: bool) -> None:
    """Forward and backward of all micro-batches of this worker; a loss sum is divided by the whole window's weight."""
    exchange, forward = state.exchange, state.forward
    change = job.augmenter.draw(window) if job.augmenter.active else None
    for where in window.micro_slices(state.micro_size):
        if send and where.stop == window.stop:
            exchange.arm()
        batch = job.train.read_slice(window, where)
        if change is not None:
            batch = job.augmenter.apply(batch, change, where, job.train)
        if state.norms.any:
            state.norms.begin(window.group_sizes(where))
        with autocast(job.request.train.precision, job.device):
            outputs = forward(*_in_memory_format(job, batch.inputs))
            loss_sum = job.objective.sum(batch, outputs)
        exchange.add_loss(job.objective.reported_sum(batch, outputs, loss_sum))
        if state.norms.any:
            state.norms.collect(exchange.norm_sums)
        # the division; backward(gradient=inverse_weight) would do it too, but torch then imports sympy for a second
        loss = loss_sum * inverse_weight
        (state.scaler.scale(loss) if state.scaler else loss).backward()


def _in_memory_format(job: Job, inputs: tuple[torch.Tensor, ...]) -> tuple[torch.Tensor, ...]:
    if not job.request.train.channels_last:
        return inputs
    return tuple(x.contiguous(memory_format=torch.channels_last) if x.dim() == 4 else x for x in inputs)


def optimizer_step(
    job: Job, state: State, learning_rate: float, scalars: ReducedScalars, weight: float
) -> tuple[torch.Tensor, torch.cuda.Event | None]:
    """Unscale, clip, step, update the scale; the numbers of `PendingUpdate`."""
    if weight == 0:
        return _numbers(scalars, 0.0, 1.0), None
    set_learning_rate(state.optimizer, learning_rate)
    if state.deferred and state.quick_step.ready:
        return optimizer_step_on_device(job, state, scalars)
    optimizer, scaler, exchange = state.optimizer, state.scaler, state.exchange
    if scaler is None:
        _regularize(job, state)
        norm = clip_gradient(exchange.gradient, exchange.parameters, job.request.train)
        if math.isfinite(norm):
            state.quick_step.step(without=exchange.unreached)
        if state.norms.any:
            state.norms.move(exchange.norm_sums, not math.isfinite(norm))
        return _numbers(scalars, norm, not math.isfinite(norm)), None
    scaler.unscale_(optimizer)
    _regularize(job, state)
    norm = clip_gradient(exchange.gradient, exchange.parameters, job.request.train)
    overflow = float(found_inf(scaler, optimizer)) > 0
    if overflow or math.isfinite(norm):  # finite gradients whose norm is not would be stepped by the scaler
        with left_out(optimizer, exchange.unreached):
            scaler.step(optimizer)
    scaler.update()
    skipped = overflow or not math.isfinite(norm)
    if state.norms.any:
        state.norms.move(exchange.norm_sums, skipped)
    return _numbers(scalars, norm, skipped, scaler.get_scale()), None


def optimizer_step_on_device(
    job: Job, state: State, scalars: ReducedScalars
) -> tuple[torch.Tensor, torch.cuda.Event | None]:
    """The same, decided on the device: the host queues it and reads nothing."""
    scaler, exchange = state.scaler, state.exchange
    if scaler is not None:
        scaler.unscale_(state.optimizer)
    _regularize(job, state)
    norm, skip = clip_on_device(exchange.gradient, exchange.parameters, job.request.train)
    if scaler is not None:
        skip = torch.maximum(skip, found_inf(scaler, state.optimizer).clamp(max=1.0))
    state.quick_step.step(skip, exchange.unreached)
    if state.norms.any:
        state.norms.move(exchange.norm_sums, skip)
    if scaler is not None:
        scaler.update()
    scale = scale_of(scaler, job.device)
    numbers = torch.stack([tensor.double() for tensor in (scalars.loss_sum, scalars.stop, norm, skip, scale)])
    if job.device.type != "cuda":
        return numbers, None
    arrived = torch.cuda.Event()
    on_host = torch.empty(len(numbers), dtype=torch.float64, pin_memory=True)
    on_host.copy_(numbers, non_blocking=True)
    arrived.record()
    return on_host, arrived


def _regularize(job: Job, state: State) -> None:
    """What the loss has beside the rows' part, once for all workers; and norms for an inspection."""
    if l1 := job.request.train.optimizer.l1:
        state.exchange.unreached -= add_l1(state.optimizer, l1)
    if state.unclipped is not None:
        state.unclipped = list(torch._foreach_norm([p.grad for p in state.exchange.parameters if p.grad is not None]))


def _numbers(scalars: ReducedScalars, norm: float, skipped: float, scale: float = 1.0) -> torch.Tensor:
    return torch.tensor([float(scalars.loss_sum), float(scalars.stop), norm, skipped, scale], dtype=torch.float64)


class _Snapshot:
    """Random states and buffers before a window: a retry must not see what the failed attempt has used."""

    def __init__(self, state: State) -> None:
        self.random = state.random.take()
        if state.buffers:
            torch._foreach_copy_(state.held_buffers, state.buffers)

    def restore(self, state: State) -> None:
        rng.quick_restore(self.random)
        if state.buffers:
            torch._foreach_copy_(state.buffers, state.held_buffers)


def _handle_failure(job: Job, state: State, error: Exception | None) -> None:
    """All workers come here together. Raises, unless all failures were of memory and a micro-batch has rows to lose."""
    attempted = f"Cannot make update {state.cursor.update}"
    raise_together(attempted, error, job.world, job.device)
    if state.micro_size == 1:
        raise MemoryShortError(
            attempted,
            found=f"memory does not suffice for one sample: {error}",
            rule="a micro-batch has at least one sample",
            remedy="Choose a smaller model or a larger machine.",
        ) from error
    job.train.forget_ahead()


def _shrink(job: Job, state: State, window: Window, weight: float, *, search: bool) -> None:
    """The largest micro-batch below the present one that fits on all workers, by trying; half where not to `search`.

    Halves until one fits, then bisects; a trial is one forward and backward of rows of this window. Collective.
    """
    share = -(-len(window.rows) // job.world.size)  # a micro-batch never has more
    fits, misses = 0, max(2, min(state.micro_size, share))
    rows = misses // 2
    while search and rows > 1 and misses - fits > max(1, fits // SHRINK_RESOLUTION):
        if _fits(job, state, window, weight, rows):
            fits = rows
        else:
            misses = rows
        rows = (fits + misses) // 2
    state.micro_size = fits or rows


def _fits(job: Job, state: State, window: Window, weight: float, rows: int) -> bool:
    """Whether all workers can do a micro-batch of so many rows. Nothing is sent."""
    state.micro_size = rows
    trial = replace(window, rows=np.resize(window.rows, rows), start=0, stop=rows)
    error = accumulate(job, state, trial, weight, 0.0, send=False)
    return not agreed(f"Cannot make update {state.cursor.update}", error, job.world, job.device)


def _noted_step(
    job: Job, state: State, learning_rate: float, scalars: ReducedScalars, weight: float
) -> tuple[torch.Tensor, torch.cuda.Event | None]:
    """`optimizer_step`. What it raises is noted, and all workers raise where they meet next: at the next window, the
    end of the epoch or a checkpoint. A step that raised may have moved some parameters and not others: it is never
    tried again."""
    made: list[tuple[torch.Tensor, torch.cuda.Event | None]] = []
    error = caught(lambda: made.append(optimizer_step(job, state, learning_rate, scalars, weight)))
    if error is None:
        return made[0]
    state.failure = _step_is_short(state, error) if is_out_of_memory(error) else error
    if job.world.size == 1:
        raise state.failure
    return _numbers(scalars, 0.0, 0.0), None


def make_moments(job: Job, state: State) -> None:
    """The optimizer's moments take their place before the first activations. Collective."""
    error = caught(lambda: state.quick_step.ready)
    if error is not None and is_out_of_memory(error):
        error = _step_is_short(state, error)
    agreed("Cannot start training", error, job.world, job.device)


def _step_is_short(state: State, error: Exception) -> MemoryShortError:
    """Memory that a smaller micro-batch does not give."""
    count = sum(parameter.numel() for parameter in state.exchange.parameters)
    return MemoryShortError(
        f"Cannot make the step of update {state.cursor.update}",
        found=f"memory does not suffice for {type(state.optimizer).__name__.removeprefix('Light')} over "
        f"{count:,} parameters: {error}",
        rule="weights, gradients and the optimizer's moments are held by every worker",
        remedy="Choose an optimizer with fewer moments, a smaller model or a larger machine.",
    )


def is_over_budget(job: Job, state: State) -> bool:
    """Whether too many windows in a row were not finite. In fp16 the scale decides (`check_scale`)."""
    return state.scaler is None and len(state.cursor.nonfinite) > job.request.train.faults.nonfinite_updates


def check_budget(job: Job, state: State, window: Window) -> None:
    """Raise DivergedError when too many windows in a row were not finite. The loop may roll back."""
    if not is_over_budget(job, state):
        return
    allowed, bad = job.request.train.faults.nonfinite_updates, job.train.not_finite(window.rows)
    where = f"rows {', '.join(map(str, sorted(bad.tolist())[:ROWS_TOLD]))} of the train split hold NaN or infinity"
    raise DivergedError(
        f"Cannot go on after update {state.cursor.update}",
        found=f"{len(state.cursor.nonfinite)} windows in a row had gradients that are not finite; "
        f"{locate_nonfinite(job, state, window)}" + (f": {where}" if len(bad) else ""),
        rule=f"train.faults.nonfinite_updates allows {allowed}",
        remedy="Mend or drop these rows in the source."
        if len(bad)
        else "Lower train.optimizer.learning_rate, set train.clip_norm, or look for extreme values in the data.",
    )
