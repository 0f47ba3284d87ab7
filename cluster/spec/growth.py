"""How large the global batch of an epoch is, and how many updates the epochs have: pure functions.

Invariant: the batch never shrinks, starts at `batch_size_global` and ends at `factor` times it (rounded).

Covered: constant, linear, milestones. Not covered: growth by what the loss does.
"""

from __future__ import annotations

import math

from cluster.spec.train import TrainSpec


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


def updates_of_epochs(train: TrainSpec, batch_size_global: int, num_rows: int) -> tuple[int, ...]:
    """Number of updates of each epoch; the last window of an epoch may be smaller."""
    return tuple(
        max(1, math.ceil(num_rows / batch_size_of_epoch(train, batch_size_global, epoch)))
        for epoch in range(train.epochs)
    )
