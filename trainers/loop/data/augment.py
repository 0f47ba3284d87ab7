"""Random changes of training images, drawn for a whole window and applied to its micro-batches.

Invariant: what happens to a row is a pure function of (seed, epoch, window, position in the window), so that it does
not depend on workers or micro-batches and needs no state in a checkpoint. MixUp and CutMix pair each row with another
row of the same global batch by a rotation: each row is a partner once, and the weight of the window stays what it was.

Covered: shifts, MixUp (arXiv:1710.09412), CutMix (arXiv:1905.04899). Not covered: color, rotation, text.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch.nn import functional as F

from cluster.spec.train import AugmentSpec
from trainers.loop.data.loader import SplitReader
from trainers.loop.data.sampler import Window
from trainers.loop.parts.losses import MicroBatch

STREAM = 0x41  # keeps these numbers apart from those of the sampler, which has the same seed


@dataclass(frozen=True)
class WindowChange:
    """What is drawn for one window of B rows."""

    shifts: np.ndarray | None
    """(B, 2) int64 pixels down and right."""
    partners: np.ndarray | None
    """(B,) row numbers to mix with."""
    share: float = 1.0
    """Share of the own row in a mix."""
    box: tuple[int, int, int, int] | None = None
    """CutMix: top, bottom, left, right of what comes from the partner."""


class Augmenter:
    """Draws and applies the changes of a spec."""

    def __init__(self, spec: AugmentSpec, seed: int, item_shape: tuple[int, ...], num_classes: int) -> None:
        self.spec = spec
        self.seed = seed
        self.size = item_shape[-2:]
        self.num_classes = num_classes
        self.active = bool(spec.shift_pixels or spec.mixup_alpha or spec.cutmix_alpha)

    def draw(self, window: Window) -> WindowChange:
        """The changes of a window, the same on every worker."""
        rng = np.random.default_rng([self.seed, window.epoch, window.index, STREAM])
        limit, rows = self.spec.shift_pixels, window.rows
        shifts = rng.integers(-limit, limit + 1, (len(rows), 2)) if limit else None
        kinds = [kind for kind in ("mixup", "cutmix") if getattr(self.spec, f"{kind}_alpha") > 0]
        if not kinds or len(rows) < 2:
            return WindowChange(shifts, None)
        kind = kinds[int(rng.integers(len(kinds)))]
        alpha = getattr(self.spec, f"{kind}_alpha")
        share = float(rng.beta(alpha, alpha))
        partners = np.roll(rows, int(rng.integers(1, len(rows))))
        if kind == "mixup":
            return WindowChange(shifts, partners, share)
        box = _box(rng, self.size, share)
        area = (box[1] - box[0]) * (box[3] - box[2])
        return WindowChange(shifts, partners, 1 - area / (self.size[0] * self.size[1]), box)

    def apply(self, batch: MicroBatch, change: WindowChange, where: slice, reader: SplitReader) -> MicroBatch:
        """The micro-batch at positions `where` of the window, changed."""
        first, *rest = batch.inputs
        targets, weights = batch.targets, batch.weights
        if change.partners is not None:
            other = reader.read(change.partners[where])
            first = _mix(first, other.inputs[0], change)
            own, others = (_one_hot(t, self.num_classes) for t in (targets, other.targets))
            own_weight, other_weight = (change.share, 1 - change.share)
            targets = own_weight * own + other_weight * others
            if weights is not None and other.weights is not None:
                # the mix of two weighted rows: targets carry the shares, the weight is their sum
                mixed = own_weight * weights + other_weight * other.weights
                parts = own_weight * weights[:, None] * own + other_weight * other.weights[:, None] * others
                targets = parts / mixed.clamp_min(torch.finfo(mixed.dtype).tiny)[:, None]
                weights = mixed
        if change.shifts is not None:
            first = shift_images(first, torch.from_numpy(change.shifts[where]).to(first.device))
        return MicroBatch((first, *rest), targets, weights)


def shift_images(images: torch.Tensor, shifts: torch.Tensor) -> torch.Tensor:
    """(n, …, H, W) moved by (n, 2) pixels; zeros come in."""
    height, width = images.shape[-2:]
    limit = int(shifts.abs().max())
    if limit == 0:
        return images
    flat = images.reshape(len(images), -1, height, width)
    padded = F.pad(flat, (limit, limit, limit, limit))
    rows = (torch.arange(height, device=images.device) + limit)[None] - shifts[:, :1]
    columns = (torch.arange(width, device=images.device) + limit)[None] - shifts[:, 1:]
    number = torch.arange(len(images), device=images.device)[:, None, None]
    moved = padded.movedim(1, 3)[number, rows[:, :, None], columns[:, None, :]]
    return moved.movedim(3, 1).reshape(images.shape)


def _mix(own: torch.Tensor, other: torch.Tensor, change: WindowChange) -> torch.Tensor:
    if change.box is None:
        return own * change.share + other * (1 - change.share)
    top, bottom, left, right = change.box
    mixed = own.clone()
    mixed[..., top:bottom, left:right] = other[..., top:bottom, left:right]
    return mixed


def _box(rng: np.random.Generator, size: tuple[int, ...], share: float) -> tuple[int, int, int, int]:
    """A random box that covers about 1 - share of the image."""
    height, width = size
    edge = np.sqrt(1 - share)
    tall, wide = round(height * edge), round(width * edge)
    top = int(rng.integers(0, height - tall + 1))
    left = int(rng.integers(0, width - wide + 1))
    return top, top + tall, left, left + wide


def _one_hot(targets: torch.Tensor, num_classes: int) -> torch.Tensor:
    """(n, C) float32; an ignored target is all zeros."""
    valid = (targets >= 0).unsqueeze(1)
    return F.one_hot(targets.clamp_min(0), num_classes).float() * valid
