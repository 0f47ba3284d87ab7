"""Ray Train workers: started, given a job, waited for.

They can be started before there is anything to train: controller, placement group and processes that load torch take
ten seconds in which data is prepared and trials run.

Invariant: Ray's storage is a folder that is thrown away and its failure handling is off; a group that gets no job ends
without having touched anything.

Covered: start, job, requests to stop, end. Not covered: trying again (fit.py), what a worker does (worker.py).
"""

from __future__ import annotations

import logging
import shutil
import threading
from contextlib import suppress
from pathlib import Path
from typing import Any

from cluster.runtime.ray_private import failure_config, training_failed_class
from trainers.launch.capacity import worker_resources
from trainers.launch.failures import AttemptFailed, classify
from trainers.launch.worker import WorkerJob, train_on_worker
from trainers.launch.worker_control import WorkerControl

IDLE_END_S = 10.0  # workers poll for a job every few milliseconds


class WorkerGroup:
    """One Ray Train run in a thread. Needs a running Ray session."""

    def __init__(self, num_workers: int, collective_timeout_s: float, storage: Path) -> None:
        """`storage`: a folder that every node sees, made and removed by the group."""
        self.num_workers = num_workers
        self.control = WorkerControl()
        self.waits_for_room = False
        """Whether Ray has no place for the workers yet."""
        self._stand = False
        self._error: BaseException | None = None
        self._done = threading.Event()  # after a KeyboardInterrupt, Thread.join takes a living thread for ended
        self._thread = threading.Thread(
            target=self._run, args=(collective_timeout_s, storage), name="ray-train", daemon=True
        )

    def start(self) -> None:
        """Begin to start the workers; returns at once, and does nothing the second time."""
        if self._thread.ident is None:
            self._thread.start()

    @property
    def ended(self) -> bool:
        """Whether it takes no job any more."""
        return self._done.is_set()

    def stands(self) -> bool:
        """Whether all workers are there. Blocks on a call until they are."""
        from ray.exceptions import RayError

        if not self._stand:
            with suppress(RayError):
                self._stand = self.control.workers_stand()
        return self._stand

    def assign(self, job: WorkerJob) -> None:
        """The job of all workers; they begin at once."""
        self.control.assign(job)

    def wait(self, timeout_s: float) -> bool:
        """Whether the job is done. Blocks up to `timeout_s`. Raises AttemptFailed."""
        if not self._done.wait(timeout_s):
            return False
        if self._error is not None:
            raise self._error
        return True

    def stop(self, reason: str, wait_s: float) -> None:
        """Let the workers write a checkpoint and end; blocks until they have, up to `wait_s`. Workers that still wait
        for room have nothing to write."""
        self.control.request_stop(reason)
        self._done.wait(0.0 if self.waits_for_room else wait_s)

    def close(self) -> None:
        """End it: workers without a job return."""
        if not self.ended and self._thread.ident is not None:
            self.control.assign(None)
            self._done.wait(0.0 if self.waits_for_room else IDLE_END_S)
        self.control.close()

    def _run(self, collective_timeout_s: float, storage: Path) -> None:
        from ray.exceptions import RayError

        try:
            _train(self.num_workers, collective_timeout_s, storage, self.control)
        except (training_failed_class(), RayError) as error:
            self._error = AttemptFailed(classify(error))
            self._error.__cause__ = error
        except BaseException as error:  # noqa: BLE001 - raised again in the thread that waits
            self._error = error
        finally:
            shutil.rmtree(storage, ignore_errors=True)
            self._done.set()


def _train(num_workers: int, collective_timeout_s: float, storage: Path, control: WorkerControl) -> None:
    from ray.train import RunConfig, ScalingConfig
    from ray.train.torch import TorchTrainer

    from trainers.launch.process_group import InterfaceTorchConfig

    quiet_ray_train()
    each = worker_resources()
    TorchTrainer(
        train_on_worker,
        train_loop_config={"control": control},
        scaling_config=ScalingConfig(num_workers=num_workers, use_gpu="GPU" in each, resources_per_worker=each),
        torch_config=InterfaceTorchConfig(timeout_s=round(collective_timeout_s)),
        run_config=RunConfig(name=storage.name, storage_path=str(storage), failure_config=no_retries()),
    ).fit()


def no_retries() -> Any:
    """Ray Train tries nothing again: controllers and preemptions it would by itself, and for ever."""
    return failure_config(max_failures=0, controller_failure_limit=0, max_preemption_failures=0)


def quiet_ray_train() -> None:
    """Ray Train logs its progress on the screen; ours is in the event stream. Errors stay."""
    for name in ("ray.train", "ray.train.v2"):
        logging.getLogger(name).setLevel(logging.ERROR)
