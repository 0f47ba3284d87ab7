"""Sums of losses over valid items: the only form in which a loss leaves a micro-batch.

    update = (Σ over the global batch of w_i · ℓ_i) / (Σ of w_i)

Invariant: nothing here divides by a number of items. The divisor belongs to the whole window over all workers and is
known before the first backward (data/loader.py), so micro-batches and workers never occur in the formula.

Covered: classification with class indices or mixed targets, (N, T) targets with ignored items, regression, focal
loss, label smoothing, any function of the user. Not covered: losses that couple rows (contrastive).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
from torch.nn import functional as F

from cluster.bundle.target import TargetTransform
from cluster.spec.train import LossSpec

IGNORE_INDEX = -100  # torch's default: targets that count for nothing

PLAIN = LossSpec()  # cross-entropy or squared error as they stand
ItemLosses = Callable[[tuple[torch.Tensor, ...], torch.Tensor, torch.Tensor], torch.Tensor]


@dataclass(frozen=True)
class MicroBatch:
    """Rows of one forward."""

    inputs: tuple[torch.Tensor, ...]
    """(n, …) in the order of the signature."""
    targets: torch.Tensor
    """(n,) int64, (n, T) int64, (n, C) float mixed classes, or (n,) float values."""
    weights: torch.Tensor | None = None
    """(n,) float32; None is all ones."""
    valid: torch.Tensor | None = None
    """(k,) int64 positions of the rows whose weight is not 0, where the reader knows them; else they are looked for,
    which reads the device."""


@dataclass(frozen=True)
class Objective:
    """The training loss of a run."""

    task: str
    spec: LossSpec = PLAIN
    item_losses: ItemLosses | None = None
    """The user's own; replaces the loss of the spec."""
    target: TargetTransform | None = None
    """How a quantity is learned: outputs and losses are then of learned values, while targets stay in their unit."""

    def sum(self, batch: MicroBatch, outputs: torch.Tensor) -> torch.Tensor:
        """Σ w_i · ℓ_i as a float scalar with a graph; items of weight 0 never enter it, not even as NaN · 0."""
        if self._plain_sum(batch):
            return F.cross_entropy(
                outputs.float() if outputs.dtype.itemsize < 4 else outputs,
                batch.targets,
                reduction="sum",
                label_smoothing=self.spec.label_smoothing,
                ignore_index=IGNORE_INDEX,
            )
        if batch.weights is None:
            return self._items(batch, outputs).sum()
        valid = batch.valid if batch.valid is not None else torch.nonzero(batch.weights > 0).flatten()
        weights = batch.weights.index_select(0, valid)
        kept = MicroBatch(
            tuple(tensor.index_select(0, valid) for tensor in batch.inputs),
            batch.targets.index_select(0, valid),
            weights,
        )
        losses = self._items(kept, outputs.index_select(0, valid))
        return (losses * weights.to(losses.dtype)).sum()

    def reported_sum(self, batch: MicroBatch, outputs: torch.Tensor, loss_sum: torch.Tensor) -> torch.Tensor:
        """The sum that curves show: of a quantity Σ w_i · e_i² with errors in its own unit, as validation has it."""
        if self.target is None or self.item_losses is not None:
            return loss_sum
        if self.target.kind == "standard":
            return loss_sum.detach() * self.target.scale**2
        wide = outputs.detach() if outputs.dtype.itemsize >= 4 else outputs.detach().float()
        return replace(self, target=None).sum(batch, self.target.to_unit(wide, torch))

    def _plain_sum(self, batch: MicroBatch) -> bool:
        return (
            self.task == "classification"
            and self.item_losses is None
            and batch.weights is None
            and self.spec.focal_gamma == 0
            and batch.targets.dim() == 1
        )

    def _items(self, batch: MicroBatch, outputs: torch.Tensor) -> torch.Tensor:
        """(n,) losses; a row of several items is their sum."""
        outputs = outputs.float() if outputs.dtype.itemsize < 4 else outputs
        targets = batch.targets if self.target is None else self.target.to_learned(batch.targets, torch)
        if self.item_losses is not None:
            return self.item_losses(batch.inputs, outputs, targets)
        if self.task == "regression":
            return (outputs.unsqueeze(-1).flatten(1)[:, 0] - targets) ** 2
        return classification_losses(outputs, batch.targets, self.spec)


def classification_losses(outputs: torch.Tensor, targets: torch.Tensor, spec: LossSpec) -> torch.Tensor:
    """(n,) losses of (n, C) or (n, T, C) logits."""
    if targets.is_floating_point():
        return _focal(F.cross_entropy(outputs, targets, reduction="none", label_smoothing=spec.label_smoothing), spec)
    losses = F.cross_entropy(
        outputs.flatten(0, -2),
        targets.flatten(),
        reduction="none",
        label_smoothing=spec.label_smoothing,
        ignore_index=IGNORE_INDEX,
    )
    per_item = _focal(losses, spec).reshape(targets.shape)  # not (n, -1): n may be 0 where all targets are ignored
    return per_item.flatten(1).sum(dim=1) if per_item.ndim > 1 else per_item


def _focal(losses: torch.Tensor, spec: LossSpec) -> torch.Tensor:
    """(1 - p)^γ · ℓ with p = exp(-ℓ) (arXiv:1708.02002)."""
    if spec.focal_gamma == 0:
        return losses
    return (1 - torch.exp(-losses)).clamp_min(0) ** spec.focal_gamma * losses
