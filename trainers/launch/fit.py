"""`launch_fit`: the same `fit` on Ray Train workers, tried again when a worker is lost or a node will be taken away.

Invariant: what an attempt leaves behind is our own checkpoints and nothing else: Ray's storage is a folder that is
thrown away, its failure handling is off, and each attempt is a new run under a new name. The number of workers may
differ between attempts (`train.workers: {min, max}`); rows, global batches and schedule do not.

Covered: start, events, retry by class of failure, elastic workers, notices to stop. Not covered: what training does
(trainers/loop).
"""

from __future__ import annotations

import logging
import shutil
import threading
import uuid
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from cluster.runtime.channel import worker_channel
from cluster.spec.train import WorkersSpec
from cluster.telemetry.events import FileSink, Message
from trainers.launch.failures import Budget, classify
from trainers.launch.notice import StopBoard
from trainers.launch.places import all_places, free_places, silent_nodes, wait_for_places
from trainers.launch.worker import WorkerJob, train_on_worker
from trainers.loop import FitRequest, FitResult
from trainers.loop.outcome import read_outcome

if TYPE_CHECKING:
    from ray.train.v2.api.config import FailureConfig

GROW_POLL_S = 5.0  # starting the workers anew costs about as much
GROW_LOOKS = 2  # a node that has just come may still go
GROW_ANSWER_S = 10.0  # a first worker process on a node takes seconds
STOP_GRACE_S = 20.0  # for a last checkpoint after Ctrl-C; 'manta stop' of a job allows 30 s


def launch_fit(request: FitRequest, *, events: Path, folder: Path) -> FitResult:
    """Train on `request.batch.workers` workers; writes `weights.safetensors` and `history.json` into `folder`.

    Needs a running Ray session; blocks. Raises what `fit` raises, ModelError for an error of the user's code and
    WorkerLostError when workers were lost more often than the budget allows. On KeyboardInterrupt a checkpoint is
    written before it passes.
    """
    from ray.exceptions import RayError
    from ray.train.v2.api.exceptions import TrainingFailedError

    folder, budget = folder.resolve(), Budget(request.train.faults)
    request = replace(
        request,
        prepared=request.prepared.resolve(),
        checkpoints=request.checkpoints.resolve() if request.checkpoints else None,
    )
    before, lost, growing, may_grow = request.batch.workers, False, False, True
    while True:
        workers = _workers_now(request, before, lost, events)
        may_grow = may_grow and not (growing and workers <= before)  # once in vain is enough
        batch = request.batch.model_copy(update={"workers": workers})
        attempt = _Attempt(replace(request, batch=batch), events, folder, may_grow=may_grow)
        try:
            attempt.run()
            return read_outcome(folder)
        except (TrainingFailedError, RayError) as error:
            failure = classify(error)
            text = budget.settle(failure, growing=attempt.growing)  # raises what is not tried again
            before, lost, growing = workers, failure.kind == "lost", attempt.growing
            FileSink(events).emit(Message(level="warning", stage=request.stage, text=text))


def _workers_now(request: FitRequest, before: int, lost: bool, events: Path) -> int:
    """As many workers as there is room for; where their number is fixed, that number. Blocks. `lost`: a worker was,
    so that its node may be dead without Ray's knowing."""
    workers, most = request.train.workers, request.batch.workers
    if not isinstance(workers, WorkersSpec) or workers.min == workers.max or most != workers.max:
        return most
    each, wait_s = resources_per_worker(), request.train.faults.replacement_wait_s
    silent = silent_nodes(wait_s) if lost else set()
    found = wait_for_places(workers.min, most, wait_s, lambda: free_places(each, silent))
    if found != before:
        text = (
            f"training goes on with {found} of {most} workers; the global batch stays {request.batch.batch_size_global}"
        )
        FileSink(events).emit(Message(level="info", stage=request.stage, text=text))
    return found


class _Attempt:
    """One Ray Train run in a thread, while this one waits for signals and for room."""

    def __init__(self, request: FitRequest, events: Path, folder: Path, *, may_grow: bool) -> None:
        self.request, self.events, self.folder, self.may_grow = request, events, folder, may_grow
        self.growing = False
        """Whether it was told to stop because there is room for more workers."""
        self._error: BaseException | None = None
        self._done = threading.Event()  # after a KeyboardInterrupt, Thread.join takes a living thread for ended

    def run(self) -> None:
        """Blocks. Raises what Ray Train raises."""
        board = StopBoard()
        thread = threading.Thread(target=self._train, args=(board,), name="ray-train", daemon=True)
        try:
            thread.start()
            self._wait(board)
        except BaseException:
            board.ask("stop")
            self._done.wait(STOP_GRACE_S)
            raise
        finally:
            board.close()
        if self._error is not None:
            raise self._error

    def _wait(self, board: StopBoard) -> None:
        workers, seen = self.request.train.workers, 0
        missing = workers.max - self.request.batch.workers if isinstance(workers, WorkersSpec) else 0
        may_grow = missing > 0 and self.may_grow and self.request.checkpoints is not None
        while not self._done.wait(GROW_POLL_S):
            if not may_grow or self.growing:
                continue
            each = resources_per_worker()
            # what is free may be this attempt's own, as long as it starts: so all there is must suffice too
            room = free_places(each) >= missing and all_places(each) >= missing + self.request.batch.workers
            seen = seen + 1 if room else 0
            if seen >= GROW_LOOKS and free_places(each, silent_nodes(GROW_ANSWER_S)) >= missing:
                self.growing = True
                board.ask("room for more workers")

    def _train(self, board: StopBoard) -> None:
        try:
            _train_once(self.request, self.events, self.folder, board)
        except BaseException as error:  # noqa: BLE001 - raised again in the thread that waits
            self._error = error
        finally:
            self._done.set()


def _train_once(request: FitRequest, events: Path, folder: Path, board: StopBoard) -> None:
    from ray.train import RunConfig, ScalingConfig
    from ray.train.torch import TorchTrainer

    from trainers.launch.group import InterfaceTorchConfig

    quiet_ray_train()
    storage = folder / f"ray-train.{uuid.uuid4().hex[:8]}"
    try:
        with worker_channel(events) as sink:
            TorchTrainer(
                train_on_worker,
                train_loop_config={"job": WorkerJob(request, sink, str(folder), board)},
                scaling_config=ScalingConfig(
                    num_workers=request.batch.workers,
                    use_gpu=uses_gpu(),
                    resources_per_worker=resources_per_worker(),
                ),
                torch_config=InterfaceTorchConfig(
                    timeout_s=round(request.train.faults.collective_timeout_s), train=request.train
                ),
                run_config=RunConfig(
                    name=storage.name,
                    storage_path=str(storage),
                    failure_config=no_retries(),
                ),
            ).fit()
    finally:
        shutil.rmtree(storage, ignore_errors=True)


def no_retries() -> FailureConfig:
    """Ray Train tries nothing again: controllers and preemptions it would by itself, and for ever."""
    from ray.train.v2.api.config import FailureConfig

    return FailureConfig(max_failures=0, controller_failure_limit=0, max_preemption_failures=0)


def uses_gpu() -> bool:
    """Whether the cluster has GPUs."""
    import ray

    return ray.cluster_resources().get("GPU", 0) > 0


def quiet_ray_train() -> None:
    """Ray Train tells its story on the screen; ours is in the event stream. Errors stay."""
    for name in ("ray.train", "ray.train.v2"):
        logging.getLogger(name).setLevel(logging.ERROR)


def resources_per_worker() -> dict[str, float]:
    """Resources of one worker."""
    return {"CPU": 1, "GPU": 1} if uses_gpu() else {"CPU": 1}
