"""Workers that start while data is prepared and trials run, so that training finds them standing.

    warm_workers(context) -> ReadyWorkers      in a thread of the driver, after the check stage
    launch_fit(…, ready=context.early)          takes them; what nobody took ends with the run

Invariant: only a run that has this host for itself starts workers early: on a cluster they would hold what others wait
for. Where there is a GPU they start when training does, since trials and the data's preparation want it first.

Covered: one process without Ray for one worker (local_worker.py), a Ray Train group for more (worker_group.py).
"""

from __future__ import annotations

import os
import tempfile
import uuid
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from cluster.pipeline.stage import StageContext
from cluster.pipeline.stages import trains_on_ray
from cluster.spec.train import WorkersSpec
from trainers.launch.local_worker import LocalWorker

if TYPE_CHECKING:  # Ray and torch are loaded where workers of Ray Train start
    from trainers.launch.worker_group import WorkerGroup


@dataclass
class ReadyWorkers:
    """What stands already; each is taken once, and a later attempt starts its own."""

    local: bool = False
    """Train in one process of this host, without Ray."""
    alone: bool = False
    """Whether the run has its Ray for itself."""
    worker: LocalWorker | None = None
    group: WorkerGroup | None = None
    meanwhile: Callable[[], None] | None = None
    """What the waiting thread does while the first attempt trains."""

    def pass_time(self) -> None:
        """Call `meanwhile`, once."""
        todo, self.meanwhile = self.meanwhile, None
        if todo is not None:
            todo()

    def take_local(self) -> LocalWorker:
        """The process that stands, or a new one."""
        worker, self.worker = self.worker, None
        return worker or LocalWorker()

    def take_group(self, num_workers: int) -> WorkerGroup | None:
        """The group that stands, if it has this size and lives."""
        if self.group is None or self.group.ended or self.group.num_workers != num_workers:
            return None
        group, self.group = self.group, None
        return group

    def close(self) -> None:
        """End what nobody took."""
        if self.worker is not None:
            self.worker.close()
        if self.group is not None:
            self.group.close()


def trains_locally(context: StageContext) -> bool:
    """Whether training needs no Ray: one worker on a host of its own, without a GPU."""
    return context.owns_host and not trains_on_ray(context.run_resolved.spec, context.host)


def warm_workers(context: StageContext) -> ReadyWorkers:
    """Start the workers of the resolved run, if that takes nothing from others. Blocks until Ray stands."""
    train = context.run_resolved.spec.train
    if trains_locally(context):
        return ReadyWorkers(local=True, worker=LocalWorker())
    if not _warms(context) or isinstance(train.workers, WorkersSpec):
        return ReadyWorkers(alone=context.owns_host)
    context.ensure_ray()
    from trainers.launch.worker_group import WorkerGroup

    # Ray's own folder of temporary files, which ends with the session: the host is the only one that must see it
    storage = Path(os.environ.get("TMPDIR") or tempfile.gettempdir()) / f"ray-train.{uuid.uuid4().hex[:8]}"
    workers = context.run_resolved.batch.workers
    group = WorkerGroup(workers, train.faults.collective_timeout_s, storage)
    group.start()
    return ReadyWorkers(alone=True, group=group)


def _warms(context: StageContext) -> bool:
    return context.owns_host and not context.host.gpus
