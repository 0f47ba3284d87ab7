"""Loss and metrics over a split, as sums and counts over all workers.

Invariant: each row counts once, whatever the number of workers; what is divided is the total, once. A mean of
workers' means would weight a worker with ten rows like one with ninety.

Loss and accuracy are a sum over a count. Metrics that are no mean over rows (F1) are computed by scikit-learn from the
confusion matrix of all workers, which is itself a sum. They are made where `train.best.metric` names one of them:
importing scikit-learn takes each worker a second.

Where a forward of many rows does not fit, it is tried with half of them.

Covered: classification, per-item targets, regression. Not covered: ranking metrics (the evaluate stage has them).
"""

from __future__ import annotations

import math

import numpy as np
import torch

from cluster.errors import MemoryShortError
from cluster.spec.train import CONFUSION_METRICS
from trainers.loop.data.loader import SplitReader
from trainers.loop.data.sampler import part
from trainers.loop.distributed.collectives import sum_over_workers
from trainers.loop.distributed.joint_failure import raise_together
from trainers.loop.distributed.memory_short import caught, is_out_of_memory
from trainers.loop.parts.losses import IGNORE_INDEX, MicroBatch, Objective
from trainers.loop.parts.precision import autocast
from trainers.loop.state import Job, State

EVALUATION_ROWS = 256  # without gradients a row costs little: at least this many a forward


def evaluate_split(job: Job, state: State, reader: SplitReader, name: str) -> dict[str, float]:
    """`{name.loss, name.accuracy | name.rmse, …}` of the model under the weights that are kept (the EMA's, say).

    Blocks. Raises on all workers what one of them raised.
    """
    was_training = state.model.training
    state.model.eval()
    try:
        with state.evaluated():
            sums, error = _sums_that_fit(job, state, reader)
    finally:
        state.model.train(was_training)
    failed, loss, hits, weight, *confusion = sum_over_workers([error is not None, *sums], job.world, job.device)
    if failed:
        _raise_failure(job, error, f"Cannot measure {name} metrics")
    if weight == 0:
        return {}
    if job.data.task == "regression":
        return {f"{name}.loss": loss / weight, f"{name}.rmse": math.sqrt(loss / weight)}
    metrics = {"loss": loss / weight, "accuracy": hits / weight}
    if confusion:
        metrics |= confusion_metrics(np.array(confusion).reshape(job.data.num_outputs, -1))
    return {f"{name}.{key}": value for key, value in metrics.items()}


def confusion_metrics(confusion: np.ndarray) -> dict[str, float]:
    """scikit-learn's metrics of a (C, C) matrix of weights, rows true classes.

    A cell is one pair of classes that occurs with that weight, so no prediction has to travel between workers.
    """
    from sklearn import metrics as sk

    true, predicted = np.nonzero(confusion)
    weights = confusion[true, predicted]
    labels = np.arange(len(confusion))
    f1 = sk.f1_score(true, predicted, sample_weight=weights, labels=labels, average="macro", zero_division=0.0)
    present = np.unique(true)  # a class without rows has no recall
    recall = sk.recall_score(true, predicted, sample_weight=weights, labels=present, average="macro", zero_division=0.0)
    return {"macro_f1": float(f1), "balanced_accuracy": float(recall)}


def _sums_that_fit(job: Job, state: State, reader: SplitReader) -> tuple[list[float], Exception | None]:
    """`_local_sums` with as many rows a forward as memory holds; zeros and the error where one row is too many."""
    sums = [0.0] * (3 + _num_classes_counted(job) ** 2)
    rows = state.evaluation_rows or max(EVALUATION_ROWS, state.micro_size)

    def measure() -> None:
        sums[:] = _local_sums(job, state, reader, rows)

    while (error := caught(measure)) is not None and is_out_of_memory(error) and rows > 1:
        rows //= 2
        state.evaluation_rows = rows  # the next epoch need not find it again
    return sums, error


def _raise_failure(job: Job, error: Exception | None, attempted: str) -> None:
    raise_together(attempted, error, job.world, job.device)
    raise MemoryShortError(
        attempted,
        found=f"memory does not suffice for one sample: {error}",
        remedy="Choose a smaller model or a larger machine.",
    ) from error


@torch.no_grad()
def _local_sums(job: Job, state: State, reader: SplitReader, size: int) -> list[float]:
    """Weighted loss, weighted hits and weight of this worker's part, and its confusion matrix where a metric needs it;
    `size` rows a forward."""
    plain = Objective(job.data.task)
    rows = torch.arange(reader.num_rows).numpy()
    start, stop = part(reader.num_rows, job.world)
    sums = torch.zeros(2, dtype=torch.float64, device=job.device)
    classes = _num_classes_counted(job)
    confusion = torch.zeros(classes * classes, dtype=torch.float64, device=job.device)
    for at in range(start, stop, size):
        batch = reader.read(rows[at : min(at + size, stop)])
        with autocast(job.request.train.precision, job.device):
            outputs = state.model(*batch.inputs).float()
            sums[0] += plain.sum(batch, outputs)
        sums[1] += count_hits(batch, outputs)
        if classes:
            confusion += count_pairs(batch, outputs, classes)
    return [*sums.tolist(), reader.weight_of(rows[start:stop]), *confusion.tolist()]


def _num_classes_counted(job: Job) -> int:
    """Side of the confusion matrix; 0 where no metric needs it."""
    wanted = job.request.train.best.metric.rpartition(".")[2]
    return job.data.num_outputs if wanted in CONFUSION_METRICS and job.data.task == "classification" else 0


def count_hits(batch: MicroBatch, outputs: torch.Tensor) -> torch.Tensor:
    """Weighted number of items whose largest output is the target; 0 for regression."""
    if batch.targets.is_floating_point():
        return torch.zeros((), device=outputs.device)
    hits = (outputs.argmax(dim=-1) == batch.targets) & (batch.targets != IGNORE_INDEX)
    if batch.weights is None:
        return hits.sum()
    return (hits.unsqueeze(-1).flatten(1).sum(dim=1) * batch.weights).sum()


def count_pairs(batch: MicroBatch, outputs: torch.Tensor, classes: int) -> torch.Tensor:
    """(C · C,) float64 weights of the pairs (target, predicted) of the valid items."""
    valid = batch.targets != IGNORE_INDEX
    pairs = (batch.targets * classes + outputs.argmax(dim=-1))[valid]
    if batch.weights is None:
        return torch.bincount(pairs, minlength=classes * classes).double()
    each = batch.weights.reshape(-1, *[1] * (batch.targets.dim() - 1)).expand_as(batch.targets)[valid]
    # bincount with weights has no deterministic form on a GPU
    return torch.zeros(classes * classes, dtype=torch.float64, device=pairs.device).index_add_(0, pairs, each.double())
