"""What one Ray Train worker does: threads, device, `fit`, and rank 0 writes the result.

Invariant: metrics take the run's own channel; `ray.train.report` is never called (it is a barrier, and lets through
about one report a poll).
"""

from __future__ import annotations

import os
import traceback
from dataclasses import dataclass
from pathlib import Path

import torch

from cluster.telemetry.events import EventSink, NullSink
from trainers.launch.worker_control import StopWatcher, WorkerControl
from trainers.loop import FitRequest, fit
from trainers.loop.distributed.world import current_world
from trainers.loop.result import write_result


@dataclass(frozen=True)
class WorkerJob:
    """Sent to every worker."""

    request: FitRequest
    sink: EventSink
    folder: str
    """Where rank 0 writes weights and history."""


def train_on_worker(config: dict[str, WorkerControl]) -> None:
    """Ray Train's function: runs in each worker inside an initialized process group, and waits for its job."""
    import ray.train
    from ray.train.torch import get_device

    control = config["control"]
    job: WorkerJob | None = control.wait_for_job()
    if job is None:
        return
    context = ray.train.get_context()
    torch.set_num_threads(threads_per_worker(context.get_local_world_size()))
    device = get_device() if torch.cuda.is_available() else torch.device("cpu")
    first = current_world().rank == 0
    notices = StopWatcher(control if first else None)
    try:
        result = fit(job.request, sink=job.sink if first else NullSink(), device=device, interrupt=notices)
    except Exception as error:  # worker main: a traceback does not travel, a note does
        error.add_note("".join(traceback.format_exception(error)))
        raise
    finally:
        notices.close()
    if first:
        write_result(Path(job.folder), result)


def threads_per_worker(workers_on_this_node: int) -> int:
    """Cores that this worker has for itself: more threads than cores makes workers wait for each other."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return max(1, cores // max(1, workers_on_this_node))
