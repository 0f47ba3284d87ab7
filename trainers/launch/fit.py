"""`launch_fit`: the same `fit` on Ray Train workers, tried again when a worker is lost.

Invariant: what an attempt leaves behind is our own checkpoints and nothing else: Ray's storage is a folder that is
thrown away, its failure handling is off, and each attempt is a new run under a new name.

Covered: start, events, retry by class of failure. Not covered: what training does (trainers/loop).
"""

from __future__ import annotations

import logging
import shutil
import uuid
from dataclasses import replace
from pathlib import Path

from cluster.runtime.channel import worker_channel
from cluster.telemetry.events import FileSink, Message
from trainers.launch.failures import classify, raise_failure
from trainers.launch.worker import WorkerJob, train_on_worker
from trainers.loop import FitRequest, FitResult
from trainers.loop.outcome import read_outcome


def launch_fit(request: FitRequest, *, events: Path, folder: Path) -> FitResult:
    """Train on `request.batch.workers` workers; writes `weights.safetensors` and `history.json` into `folder`.

    Needs a running Ray session; blocks. Raises what `fit` raises, ModelError for an error of the user's code and
    WorkerLostError when workers were lost more often than the budget allows.
    """
    from ray.exceptions import RayError
    from ray.train.v2.api.exceptions import TrainingFailedError

    folder, restarts = folder.resolve(), 0
    request = replace(
        request,
        prepared=request.prepared.resolve(),
        checkpoints=request.checkpoints.resolve() if request.checkpoints else None,
    )
    while True:
        try:
            _attempt(request, events, folder)
            return read_outcome(folder)
        except (TrainingFailedError, RayError) as error:
            failure = classify(error)
            if failure.kind != "lost" or restarts >= request.train.faults.worker_restarts:
                raise_failure(failure, restarts)
            restarts += 1
            FileSink(events).emit(
                Message(
                    level="warning",
                    stage=request.stage,
                    text=f"{failure.text}; restart {restarts} of {request.train.faults.worker_restarts} "
                    "from the last checkpoint",
                )
            )


def _attempt(request: FitRequest, events: Path, folder: Path) -> None:
    from ray.train import RunConfig, ScalingConfig
    from ray.train.torch import TorchTrainer
    from ray.train.v2.api.config import FailureConfig

    from trainers.launch.group import InterfaceTorchConfig

    quiet_ray_train()
    storage = folder / f"ray-train.{uuid.uuid4().hex[:8]}"
    try:
        with worker_channel(events) as sink:
            TorchTrainer(
                train_on_worker,
                train_loop_config={"job": WorkerJob(request, sink, str(folder))},
                scaling_config=ScalingConfig(
                    num_workers=request.batch.workers,
                    use_gpu=uses_gpu(),
                    resources_per_worker=resources_per_worker(),
                ),
                torch_config=InterfaceTorchConfig(timeout_s=round(request.train.faults.collective_timeout_s)),
                run_config=RunConfig(
                    name=storage.name,
                    storage_path=str(storage),
                    failure_config=FailureConfig(max_failures=0, controller_failure_limit=0),
                ),
            ).fit()
    finally:
        shutil.rmtree(storage, ignore_errors=True)


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
