"""How rows become updates: workers × micro-batch × accumulation = global batch, and how many updates the epochs have.

    share               rows of an update that one worker reads: ⌈global batch / workers⌉ at most
    accumulation        ⌈share / micro-batch⌉
    batch of an epoch   the global batch, or what `train.growth` makes of it, by more accumulation
    updates of an epoch ⌈rows / its batch⌉, the last one of fewer rows

Invariant: the global batch is a fact of the spec: another number of workers, or another micro-batch, changes the
accumulation and neither the rows of an update nor the number of updates. A growing batch never shrinks, starts at the
global batch and ends at `factor` times it (rounded).

Covered: plans of a training section, of fewer workers, of another micro-batch; growth, linear or at milestones.
Not covered: which rows an update has (trainers/loop/data/sampler.py); growth by what the loss does.
"""

from __future__ import annotations

import math
from typing import Any

from pydantic import computed_field, model_validator

from cluster.errors import SpecError
from cluster.spec.base import StrictSpec
from cluster.spec.train import TrainSpec, most_workers
from cluster.telemetry.view import counted


class BatchPlan(StrictSpec):
    """Who computes how much of an update."""

    batch_size_global: int
    batch_size_per_worker: int
    """Largest micro-batch of one worker; the last of a window may be smaller."""
    workers: int
    updates_per_epoch: int
    """Of an epoch with the global batch as it starts."""
    updates_total: int

    @classmethod
    def of(cls, train: TrainSpec, num_rows: int) -> BatchPlan:
        """The plan of a training section without `auto`, over `num_rows` training rows. Raises SpecError."""
        assert train.workers != "auto"
        assert train.batch_size_global != "auto"
        assert train.batch_size_per_worker != "auto"
        check_division(train)
        batch = train.batch_size_global
        return cls(
            batch_size_global=batch,
            batch_size_per_worker=train.batch_size_per_worker,
            workers=most_workers(train.workers),
            updates_per_epoch=updates_of_epoch(num_rows, batch),
            updates_total=sum(updates_of_epochs(train, batch, num_rows)),
        ).for_micro_batch(train.batch_size_per_worker)

    @computed_field  # type: ignore[prop-decorator]
    @property
    def accumulation_steps(self) -> int:
        """Micro-batches that a worker adds up in an update."""
        return math.ceil(self.share / self.batch_size_per_worker)

    @property
    def share(self) -> int:
        """Rows of an update of the worker that reads most."""
        return share_of(self.batch_size_global, self.workers)

    @property
    def smallest_share(self) -> int:
        """Rows of an update of the worker that reads least: one fewer at most."""
        return max(1, self.batch_size_global // self.workers)

    def for_workers(self, workers: int) -> BatchPlan:
        """The same updates by another number of workers: micro-batches stay as large as the share allows."""
        return self.model_copy(update={"workers": workers}).for_micro_batch(self.batch_size_per_worker)

    def for_micro_batch(self, rows: int) -> BatchPlan:
        """The same updates in micro-batches of `rows`, or of the whole share where that is less."""
        return self.model_copy(update={"batch_size_per_worker": min(rows, self.share)})

    def equation(self) -> str:
        """The line that `manta explain` prints."""
        product = self.workers * self.batch_size_per_worker * self.accumulation_steps
        relation = "=" if product == self.batch_size_global else "≥"
        return (
            f"{counted(self.workers, 'worker')} × {self.batch_size_per_worker} micro-batch × {self.accumulation_steps} "
            f"accumulation {relation} {self.batch_size_global} global batch"
        )

    @model_validator(mode="before")
    @classmethod
    def _leave_out_what_follows(cls, raw: Any) -> Any:
        """`resolved.yaml` has the accumulation for people; read back, it is derived."""
        if not isinstance(raw, dict):
            return raw
        return {key: value for key, value in raw.items() if key != "accumulation_steps"}


def share_of(batch_size: int, workers: int) -> int:
    """Rows of a batch that fall to the worker that reads most."""
    return max(1, math.ceil(batch_size / workers))


def batch_size_of_epoch(train: TrainSpec, batch_size_global: int, epoch: int) -> int:
    """Samples an update in `epoch`, counted from 0."""
    if train.growth is None:
        return batch_size_global
    factor, milestones = train.growth.factor, train.growth.milestones
    if milestones:
        passed = sum(epoch >= milestone for milestone in milestones)
        return round(batch_size_global * factor ** (passed / len(milestones)))
    progress = epoch / max(1, train.epochs - 1)
    return round(batch_size_global * (1 + (factor - 1) * progress))


def updates_of_epoch(num_rows: int, batch_size: int) -> int:
    """Windows of an epoch; the last one may have fewer rows."""
    return max(1, math.ceil(num_rows / batch_size))


def updates_of_epochs(train: TrainSpec, batch_size_global: int, num_rows: int) -> tuple[int, ...]:
    """Number of updates of each epoch that there is: `train.max_updates` may end the last one early."""
    left, found = train.max_updates, []
    for epoch in range(train.epochs):
        updates = updates_of_epoch(num_rows, batch_size_of_epoch(train, batch_size_global, epoch))
        found.append(updates if left is None else min(left, updates))
        if left is not None and (left := left - found[-1]) == 0:
            break
    return tuple(found)


def check_division(train: TrainSpec) -> None:
    """Raise SpecError for a global batch of fewer samples than workers, where both are known."""
    if train.workers == "auto" or train.batch_size_global == "auto":
        return
    workers = most_workers(train.workers)
    if train.batch_size_global < workers:
        raise SpecError(
            "Cannot divide the global batch",
            found=f"train.batch_size_global is {train.batch_size_global} and train.workers is {workers}",
            rule="each worker needs at least one sample of each update",
            remedy="Raise train.batch_size_global or lower train.workers.",
        )
