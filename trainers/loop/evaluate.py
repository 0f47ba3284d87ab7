"""Loss and accuracy over a split, as sums and counts over all workers.

Invariant: each row counts once, whatever the number of workers; what is divided is the total, once. A mean of
workers' means would weight a worker with ten rows like one with ninety.

Covered: classification, per-item targets, regression. Not covered: ranking metrics (the evaluate stage has them).
"""

from __future__ import annotations

import math

import torch

from trainers.loop.exchange import sum_over_workers
from trainers.loop.loader import SplitReader
from trainers.loop.losses import IGNORE_INDEX, MicroBatch, Objective
from trainers.loop.precision import autocast
from trainers.loop.sampler import part
from trainers.loop.state import Job, State

EVALUATION_ROWS = 256  # without gradients a row costs little: at least this many a forward


def evaluate_split(job: Job, state: State, reader: SplitReader, name: str) -> dict[str, float]:
    """`{name.loss, name.accuracy | name.rmse}` of the model as it stands (under the EMA where there is one). Blocks."""
    was_training = state.model.training
    state.model.eval()
    try:
        if state.ema:
            with state.ema.applied():
                sums = _local_sums(job, state, reader)
        else:
            sums = _local_sums(job, state, reader)
    finally:
        state.model.train(was_training)
    loss, hits, weight = sum_over_workers(sums, job.world, job.device)
    if weight == 0:
        return {}
    if job.data.task == "regression":
        return {f"{name}.loss": loss / weight, f"{name}.rmse": math.sqrt(loss / weight)}
    return {f"{name}.loss": loss / weight, f"{name}.accuracy": hits / weight}


@torch.no_grad()
def _local_sums(job: Job, state: State, reader: SplitReader) -> list[float]:
    """Weighted loss, weighted hits and weight of this worker's part."""
    plain = Objective(job.data.task)
    rows = torch.arange(reader.num_rows).numpy()
    start, stop = part(reader.num_rows, job.world)
    size = max(EVALUATION_ROWS, state.micro_size)
    sums = torch.zeros(2, dtype=torch.float64, device=job.device)
    for at in range(start, stop, size):
        batch = reader.read(rows[at : min(at + size, stop)])
        with autocast(job.request.train.precision, job.device):
            outputs = state.model(*batch.inputs).float()
            sums[0] += plain.sum(batch, outputs)
        sums[1] += count_hits(batch, outputs)
    return [*sums.tolist(), reader.weight_of(rows[start:stop])]


def count_hits(batch: MicroBatch, outputs: torch.Tensor) -> torch.Tensor:
    """Weighted number of items whose largest output is the target; 0 for regression."""
    if batch.targets.is_floating_point():
        return torch.zeros((), device=outputs.device)
    hits = (outputs.argmax(dim=-1) == batch.targets) & (batch.targets != IGNORE_INDEX)
    if batch.weights is None:
        return hits.sum()
    return (hits.unsqueeze(-1).flatten(1).sum(dim=1) * batch.weights).sum()
