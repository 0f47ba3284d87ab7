"""`launch_fit`: the same `fit` on Ray Train workers, tried again when a worker is lost or a node will be taken away.

Invariant: what an attempt leaves behind is our own checkpoints and nothing else. The number of workers may differ
between attempts (`train.workers: {min, max}`); rows, global batches and schedule do not. The first attempt takes
workers that stand already (ready_workers.py), where their number fits.

Covered: start, events, retry by class of failure, elastic workers, requests to stop. Not covered: what training does
(trainers/loop).
"""

from __future__ import annotations

import uuid
from dataclasses import replace
from pathlib import Path

from cluster.runtime.channel import worker_channel
from cluster.spec.train import WorkersSpec
from cluster.telemetry.events import FileSink, Message, Progress
from cluster.telemetry.view import counted
from trainers.launch.capacity import (
    RoomWait,
    free_slots,
    total_slots,
    unresponsive_nodes,
    wait_for_slots,
    worker_resources,
)
from trainers.launch.failures import AttemptFailed, Budget, classify
from trainers.launch.ready_workers import ReadyWorkers
from trainers.launch.worker import WorkerJob
from trainers.launch.worker_group import WorkerGroup
from trainers.loop import FitRequest, FitResult
from trainers.loop.result import read_result

START_POLL_S = 2.0  # workers without room say so; those with room load torch for some seconds
GROW_POLL_S = 5.0  # starting the workers anew costs about as much
GROW_POLLS = 2  # a node that has just come may still go
GROW_ANSWER_S = 10.0  # a first worker process on a node takes seconds
STOP_GRACE_S = 20.0  # for a last checkpoint after Ctrl-C; 'manta stop' of a job allows 30 s


def launch_fit(request: FitRequest, *, events: Path, folder: Path, ready: ReadyWorkers | None = None) -> FitResult:
    """Train on `request.batch.workers` workers; writes `weights.safetensors` and `history.json` into `folder`.

    Needs a running Ray session unless `ready` is local; blocks. Raises what `fit` raises, ModelError for an error of
    the user's code and WorkerLostError when workers were lost more often than the budget allows. On KeyboardInterrupt a
    checkpoint is written before it passes.
    """
    ready = ready or ReadyWorkers()
    folder, budget = folder.resolve(), Budget(request.train.faults)
    request = replace(
        request,
        prepared=request.prepared.resolve(),
        checkpoints=request.checkpoints.resolve() if request.checkpoints else None,
    )
    before, lost, growing, may_grow = request.batch.workers, False, False, True
    while True:
        workers = _workers_now(request, before, events, lost=lost, alone=ready.alone)
        may_grow = may_grow and not (growing and workers <= before)  # once in vain is enough
        now = replace(request, batch=request.batch.for_workers(workers))
        attempt: _RayAttempt | _LocalAttempt = (
            _LocalAttempt(now, events, folder, ready)
            if ready.local
            else _RayAttempt(now, events, folder, ready, may_grow=may_grow)
        )
        try:
            attempt.run()
            return read_result(folder)
        except AttemptFailed as failed:
            failure = failed.failure
            text = budget.spend(failure, growing=attempt.growing)  # raises what is not tried again
            before, lost, growing = workers, failure.kind == "lost", attempt.growing
            FileSink(events).emit(Message(level="warning", stage=request.stage, text=text))


def _workers_now(request: FitRequest, before: int, events: Path, *, lost: bool, alone: bool) -> int:
    """As many workers as there is room for; where their number is fixed, that number. Blocks. `lost`: a worker was,
    so that its node may be dead without Ray's knowing. `alone`: the Ray is the run's own."""
    workers, most = request.train.workers, request.batch.workers
    if not isinstance(workers, WorkersSpec) or workers.min == workers.max or most != workers.max:
        return most
    each, wait_s = worker_resources(), request.train.faults.replacement_wait_s
    silent = unresponsive_nodes(wait_s) if lost else set()
    wait = RoomWait(request.stage, events, workers.min, alone)
    found = wait_for_slots(workers.min, most, wait_s, lambda: free_slots(each, silent), wait.say)
    if found != before:
        text = (
            f"training goes on with {found} of {most} workers; the global batch stays {request.batch.batch_size_global}"
        )
        FileSink(events).emit(Message(level="info", stage=request.stage, text=text))
    return found


class _LocalAttempt:
    """Training in one process of this host."""

    growing = False

    def __init__(self, request: FitRequest, events: Path, folder: Path, ready: ReadyWorkers) -> None:
        self.request, self.events, self.folder, self.ready = request, events, folder, ready
        self.worker = ready.take_local()

    def run(self) -> None:
        """Blocks. Raises AttemptFailed."""
        try:
            self.worker.assign(self.request, self.events, self.folder)
            self.ready.pass_time()
            self.worker.wait()
        except KeyboardInterrupt:
            self.worker.stop(STOP_GRACE_S)
            raise
        finally:
            self.worker.close()


class _RayAttempt:
    """One Ray Train run, while this thread waits for signals and for room."""

    def __init__(self, request: FitRequest, events: Path, folder: Path, ready: ReadyWorkers, *, may_grow: bool) -> None:
        self.request, self.events, self.folder, self.may_grow = request, events, folder, may_grow
        self.growing = False
        """Whether it is to stop because there is room for more workers."""
        self._ready = ready

    def run(self) -> None:
        """Blocks. Raises AttemptFailed and what Ray raises before workers start."""
        from ray.exceptions import RayError

        storage = self.folder / f"ray-train.{uuid.uuid4().hex[:8]}"
        timeout_s = self.request.train.faults.collective_timeout_s
        with worker_channel(self.events) as sink:
            count = self.request.batch.workers
            text = f"{counted(count, 'worker')} of Ray Train: each loads torch and joins the others"
            FileSink(self.events).emit(Progress(stage=self.request.stage, done=0, text=f"starting {text}"))
            group = self._ready.take_group(count) or WorkerGroup(count, timeout_s, storage)
            try:
                group.start()
                group.assign(WorkerJob(self.request, sink, str(self.folder)))
                self._ready.pass_time()
                self._wait(group)
            except AttemptFailed:
                raise
            except RayError as error:  # of counting the room: the session itself is in trouble
                group.stop("stop", STOP_GRACE_S)
                raise AttemptFailed(classify(error)) from error
            except BaseException:
                group.stop("stop", STOP_GRACE_S)
                raise
            finally:
                group.close()

    def _wait(self, group: WorkerGroup) -> None:
        workers, seen = self.request.train.workers, 0
        missing = workers.max - self.request.batch.workers if isinstance(workers, WorkersSpec) else 0
        may_grow = missing > 0 and self.may_grow and self.request.checkpoints is not None
        self._wait_for_room(group)
        while not group.wait(GROW_POLL_S):
            if not may_grow or self.growing:
                continue
            each = worker_resources()
            # what is free may be this attempt's own, as long as it starts: so all there is must suffice too
            room = free_slots(each) >= missing and total_slots(each) >= missing + self.request.batch.workers
            seen = seen + 1 if room else 0
            if seen >= GROW_POLLS and free_slots(each, unresponsive_nodes(GROW_ANSWER_S)) >= missing:
                self.growing = True
                group.control.request_stop("room for more workers")

    def _wait_for_room(self, group: WorkerGroup) -> None:
        """Blocks until the workers stand, or have ended. Raises ResourceError."""
        request = self.request
        room = RoomWait(request.stage, self.events, request.batch.workers, self._ready.alone)
        while not group.stands() and not group.wait(START_POLL_S):
            group.waits_for_room = room.say()
        group.waits_for_room = False
