"""What augmentation depends on."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from cluster.spec.train import AugmentSpec
from tests.unit.loop_tests.rig import CLASSES, FEATURES, request_for, start, write_data
from trainers.loop.data.augment import Augmenter, WindowChange
from trainers.loop.data.loader import SplitReader
from trainers.loop.data.sampler import Window
from trainers.loop.parts.losses import Objective

CPU = torch.device("cpu")


def test_augmentation_changes_from_epoch_to_epoch_and_not_with_the_workers() -> None:
    augmenter = Augmenter(AugmentSpec(shift_pixels=2, mixup_alpha=0.4), 7, (1, 6, 6), CLASSES)

    def draw(epoch: int, index: int, start: int, stop: int) -> tuple:
        change = augmenter.draw(Window(epoch, index, np.arange(32), start, stop))
        assert change.shifts is not None
        return change.share, change.shifts.tolist()

    assert draw(0, 0, 0, 16) == draw(0, 0, 16, 32) == draw(0, 0, 0, 32)
    assert len({str(draw(epoch, index, 0, 32)) for epoch in range(3) for index in range(3)}) == 9


def test_mixup_of_weighted_rows_is_the_weighted_sum_of_both_losses(tmp_path: Path) -> None:
    prepared = write_data(tmp_path, 24, dtype="FP32")
    job, _ = start(request_for(prepared, batch=8, micro=8))
    weights = np.random.default_rng(1).uniform(0.2, 3, 24).astype(np.float32)
    reader = SplitReader(job.data.splits["train"], CPU, weights)
    rows, share = np.arange(8), 0.3
    change = WindowChange(None, np.roll(rows, 3), share)
    mixed = Augmenter(AugmentSpec(mixup_alpha=1.0), 7, (FEATURES,), CLASSES).apply(
        reader.read(rows), change, slice(0, 8), reader
    )
    outputs = torch.randn(8, CLASSES, generator=torch.Generator().manual_seed(0))
    items = [F.cross_entropy(outputs, reader.read(some).targets, reduction="none") for some in (rows, np.roll(rows, 3))]
    each = [torch.from_numpy(weights[some]) for some in (rows, np.roll(rows, 3))]
    wanted = share * (each[0] * items[0]).sum() + (1 - share) * (each[1] * items[1]).sum()
    torch.testing.assert_close(Objective("classification").sum(mixed, outputs), wanted)
    assert float(mixed.weights.sum()) == pytest.approx(reader.weight_of(rows)), "the divisor is the window's as before"
