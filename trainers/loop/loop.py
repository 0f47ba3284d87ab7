"""The loop: read this first.

    for each epoch, for each window of its order:  update (step.py)
    after each epoch:                              evaluate, compare with the best, checkpoint

Invariant: a run that was interrupted at any moment and started again ends with the same bytes as one that was not
(same machine type, same number of workers; on a GPU with `train.deterministic`). All workers walk through this file in
step.

Covered: one process, or all processes of an initialized process group. Not covered: starting them (trainers/launch).
"""

from __future__ import annotations

import gc
import math
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch

from cluster.errors import DivergedError, InterruptedRunError, WorkerLostError
from cluster.telemetry.events import EpochFinished, EventSink, Message
from trainers.loop.callbacks import CallbackRunner
from trainers.loop.checkpointing.checkpointer import Checkpointer
from trainers.loop.data.sampler import Window, epoch_order, window_of
from trainers.loop.diagnostics.inspector import Inspector
from trainers.loop.diagnostics.logbook import Logbook
from trainers.loop.diagnostics.profiler import profiled
from trainers.loop.diagnostics.utilization import Meter
from trainers.loop.diagnostics.watchdog import Watchdog
from trainers.loop.distributed.collectives import average_buffers, sum_over_workers
from trainers.loop.distributed.gradient_exchange import TIME_OVER
from trainers.loop.distributed.joint_failure import agreed
from trainers.loop.evaluate import evaluate_split
from trainers.loop.parts.deterministic import deterministic
from trainers.loop.parts.plateau import improves
from trainers.loop.request import FitRequest
from trainers.loop.result import FitResult
from trainers.loop.setup import default_device, set_up, unknown_metric
from trainers.loop.state import Cursor, Job, State, UpdateReport
from trainers.loop.step import check_budget, finish_update, make_moments, start_update
from trainers.loop.tuner.tune import tune

OnEpoch = Callable[[EpochFinished], bool]


def fit(
    request: FitRequest,
    *,
    sink: EventSink,
    on_epoch: OnEpoch | None = None,
    device: torch.device | None = None,
    interrupt: Callable[[], bool] | None = None,
) -> FitResult:
    """Train to the end, going on from the newest valid checkpoint if there is one.

    Every worker calls it; rank 0 alone emits and writes. `on_epoch` returning True ends the run after that epoch.
    `interrupt` is called before each update; once it is true on any worker, a checkpoint is written and all raise
    InterruptedRunError. Raises DivergedError, MemoryShortError, PeerFailedError, WorkerLostError, DiskFullError.
    """
    device = device or default_device()
    with deterministic(request.train, device):
        return _fit(request, sink, on_epoch, device, interrupt)


def _fit(
    request: FitRequest,
    sink: EventSink,
    on_epoch: OnEpoch | None,
    device: torch.device,
    interrupt: Callable[[], bool] | None,
) -> FitResult:
    job, state = set_up(request, sink, device)
    checkpointer = Checkpointer(job, state)
    checkpointer.resume()
    if state.cursor == Cursor():
        tune(job, state)
    make_moments(job, state)
    callbacks = CallbackRunner(job, state)
    checkpointer.on_written = callbacks.checkpointed
    watchdog = Watchdog(job.world)
    started, cpu, rows_before = time.monotonic(), time.process_time(), state.rows_seen
    try:
        with collector_paused(), profiled(job) as next_update:
            clock = TimeLimit(job, state)

            def before_update() -> float:
                next_update()
                return float(bool(interrupt and interrupt())) + clock.vote()

            run_epochs(job, state, checkpointer, callbacks, on_epoch, before_update)
            callbacks.training_ended()
    except WorkerLostError as error:
        raise _with_missing_ranks(error, watchdog) from error
    finally:
        watchdog.close()
        job.train.close()
        job.validation.close()
    spent = {"seconds": time.monotonic() - started, "cpu_seconds": time.process_time() - cpu}
    spent["samples_per_s"] = (state.rows_seen - rows_before) / max(spent["seconds"], 1e-9)
    return _result(job, state, spent)


def run_epochs(
    job: Job,
    state: State,
    checkpointer: Checkpointer,
    callbacks: CallbackRunner,
    on_epoch: OnEpoch | None,
    before_update: Callable[[], float],
) -> None:
    """The whole training, visible in one place. `before_update` returns this worker's vote to stop after an update."""
    meter = Meter(job)
    inspector = Inspector(job, state, meter)
    while not is_over(job, state):
        logbook = Logbook(job, state, meter, callbacks.on_update)
        try:
            for window in remaining_windows(job, state):
                reports = train_window(job, state, window, inspector, before_update())
                due = checkpointer.due()
                if due:
                    reports += finish_update(job, state)
                record(job, state, reports, logbook, checkpointer)
                if due:
                    checkpointer.write()
                if any(report.time_over for report in reports):
                    end_early(job, state)
                    break
            record(job, state, finish_update(job, state), logbook, checkpointer)
        except DivergedError as error:
            checkpointer.roll_back(error)  # raises when the budget is spent
            continue
        event = finish_epoch(job, state)
        stop = bool(on_epoch(event)) if on_epoch else False
        stop |= callbacks.epoch_ended(event)
        state.stopped_early |= bool(sum_over_workers([stop], job.world, job.device)[0])
        if job.world.rank == 0:
            job.sink.emit(event)
        if event.epoch % job.request.train.checkpoint.every_epochs == 0 or is_over(job, state):
            checkpointer.write(event)
        gc.collect()


def train_window(job: Job, state: State, window: Window, inspector: Inspector, want_stop: float) -> list[UpdateReport]:
    """An update, finished at once, or after the next one has been queued where the device is not to be waited for.
    An inspection needs the numbers before and after its update, so that update is finished at once too."""
    state.inspecting = inspector.due()
    at_once = not state.deferred or state.inspecting
    reports = finish_update(job, state) if at_once else []
    with inspector.inspect(window):
        reports += start_update(job, state, window, want_stop=want_stop)
        if at_once:
            reports += finish_update(job, state)
    return reports


def record(job: Job, state: State, reports: list[UpdateReport], logbook: Logbook, checkpointer: Checkpointer) -> None:
    """After updates are finished. Raises DivergedError past the budget, InterruptedRunError where one was to stop."""
    if reports:
        check_budget(job, state, reports[-1].window)
    stop = any(report.stop for report in reports)
    for report in reports + finish_update(job, state) if stop else reports:
        logbook.note(report)
    if stop:
        checkpointer.write()
        raise _interrupted(state)


class TimeLimit:
    """`train.max_time_s`, by the clock of rank 0: seconds of all attempts together."""

    def __init__(self, job: Job, state: State) -> None:
        limit = job.request.train.max_time_s
        self.counts, self.limit = limit is not None, limit if job.world.rank == 0 else None
        self.state, self.before, self.started = state, state.seconds, time.monotonic()

    def vote(self) -> float:
        """Before an update: whether it is to be the last one."""
        if not self.counts:
            return 0.0
        self.state.seconds = self.before + time.monotonic() - self.started
        return TIME_OVER if self.limit is not None and self.state.seconds >= self.limit else 0.0


def end_early(job: Job, state: State) -> None:
    """The epoch ends with the update that was made last, and the training with it."""
    state.stopped_early = True
    if job.world.rank == 0:
        text = f"training ends after update {state.cursor.update}: train.max_time_s has passed"
        job.sink.emit(Message(level="info", stage=job.request.stage, text=text))


def remaining_windows(job: Job, state: State) -> Iterator[Window]:
    """The windows of the current epoch from the cursor on, the next one already being read."""
    cursor, batch = state.cursor, job.batch_size(state.cursor.epoch)
    order = epoch_order(job.request.seed, cursor.epoch, job.train.num_rows)
    count = job.num_windows(cursor.epoch)
    while cursor.window < count:
        if (cursor.epoch, cursor.window) in state.left_out:
            cursor.window += 1
            cursor.skipped += 1
            continue
        if cursor.window + 1 < count:
            following = window_of(order, cursor.epoch, cursor.window + 1, batch, job.world, state.norms.rows)
            job.train.read_ahead(following, state.micro_size)
        yield window_of(order, cursor.epoch, cursor.window, batch, job.world, state.norms.rows)


def finish_epoch(job: Job, state: State) -> EpochFinished:
    """Evaluate, move the plateau, keep the best, and put the cursor at the start of the next epoch."""
    train, cursor = job.request.train, state.cursor
    agreed("Cannot end the epoch", state.failure, job.world, job.device)
    average_buffers(state.own_buffers, job.world)
    metrics = evaluate_split(job, state, job.validation, "validation")
    if cursor.weight_sum > 0:
        metrics["train.loss"] = cursor.loss_sum / cursor.weight_sum
    event = EpochFinished(
        stage=job.request.stage,
        epoch=cursor.epoch + 1,
        epochs=job.num_epochs,
        update=cursor.update,
        metrics=metrics,
    )
    state.history.append(event)
    value = best_value(job, metrics)
    _say_not_finite(job, state, value)
    if state.plateau and train.schedule.plateau:
        state.plateau.observe(value, train.schedule.plateau, train.best)
    _keep_best(job, state, value, metrics)
    cursor.epoch, cursor.window, cursor.loss_sum, cursor.weight_sum = cursor.epoch + 1, 0, 0.0, 0.0
    return event


def _say_not_finite(job: Job, state: State, value: float) -> None:
    """Once, in the epoch in which it first happens, and not when the run has ended."""
    name = job.request.train.best.metric
    before = [event.metrics.get(name, 0.0) for event in state.history[:-1]]
    if job.world.rank == 0 and not math.isfinite(value) and all(map(math.isfinite, before)):
        text = f"{name} is {value} after epoch {state.cursor.epoch + 1}: such an epoch is never the best"
        job.sink.emit(Message(level="warning", stage=job.request.stage, text=text))


def best_value(job: Job, metrics: dict[str, float]) -> float:
    """The metric that decides which epoch is the best. Raises SpecError for a name that does not exist."""
    name = job.request.train.best.metric
    if name not in metrics:
        raise unknown_metric(name, metrics)
    return metrics[name]


def is_over(job: Job, state: State) -> bool:
    """Whether no epoch is left."""
    return state.stopped_early or state.cursor.epoch >= job.num_epochs


@contextmanager
def collector_paused() -> Iterator[None]:
    """Python's garbage collector runs between epochs, not inside updates, where it would make a worker a straggler."""
    was_on = gc.isenabled()
    gc.disable()
    gc.freeze()  # what is there now stays: collecting between epochs need not look at every imported module
    try:
        yield
    finally:
        gc.unfreeze()
        if was_on:
            gc.enable()


def _keep_best(job: Job, state: State, value: float, metrics: dict[str, float]) -> None:
    train, best = job.request.train, state.best
    stopping = train.early_stopping
    improved = improves(value, best.value, train.best.direction)
    enough = improves(value, best.value, train.best.direction, stopping.min_delta if stopping else 0.0)
    best.epochs_without = 0 if enough else best.epochs_without + 1
    if improved or train.keep == "last":
        best.epoch, best.metrics = state.cursor.epoch, metrics
        best.weights = current_weights(state)
        best.value = value if improved else best.value
    if stopping and best.epochs_without >= stopping.patience:
        state.stopped_early = True


def current_weights(state: State) -> dict[str, torch.Tensor]:
    """A copy on the CPU of what is evaluated."""
    with state.evaluated():
        return {name: tensor.detach().cpu().clone() for name, tensor in state.model.state_dict().items()}


def _result(job: Job, state: State, spent: dict[str, float]) -> FitResult:
    best = state.best
    if not best.weights:  # no epoch had a finite metric
        raise DivergedError(
            "Cannot name a best epoch",
            found=f"{job.request.train.best.metric} was never finite in {len(state.history)} epochs",
            rule="the result is the best epoch's weights",
            remedy="Lower train.optimizer.learning_rate.",
        )
    return FitResult(
        weights=best.weights,
        history=state.history,
        metrics=best.metrics,
        best_epoch=best.epoch + 1,
        updates=state.cursor.update,
        skipped_updates=state.cursor.skipped,
        num_parameters=sum(parameter.numel() for parameter in state.exchange.parameters),
        stopped_early=state.stopped_early,
        micro_batch=state.micro_size,
        micro_batch_reason=state.micro_reason,
        learning_rate_found=state.learning_rate_found,
        details=spent,
    )


def _with_missing_ranks(error: WorkerLostError, watchdog: Watchdog) -> WorkerLostError:
    """The same error with the ranks that did not come and the stacks of all that answer. After a time-out only: a
    closed connection is an error of its own."""
    if not any(word in error.found.lower() for word in ("timed out", "timeout")):
        return error
    missing, stacks = watchdog.who_is_missing()
    if not missing:
        return error
    names = ", ".join(f"worker {rank}" for rank in missing)
    last = [stacks[rank].strip().splitlines()[-1].strip() for rank in missing if stacks.get(rank)]
    return WorkerLostError(
        error.attempted,
        found=f"{names} did not come in time" + (f", last seen at: {'; '.join(last)}" if last else ""),
        rule=f"train.faults.collective_timeout_s is how long the others wait ({error.rule})",
        remedy=error.remedy,
        details={"missing": missing, "stacks": {str(rank): text for rank, text in stacks.items()}},
    )


def _interrupted(state: State) -> InterruptedRunError:
    return InterruptedRunError(
        "Training was told to stop",
        found=f"a notice to stop after update {state.cursor.update}",
        rule="everything up to there is in a checkpoint",
        remedy="Run the same command again to go on from here.",
    )
