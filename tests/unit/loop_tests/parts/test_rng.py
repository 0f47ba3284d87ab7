"""Random streams of workers."""

from __future__ import annotations

import random

import numpy as np
import torch

from trainers.loop.parts import rng

CPU = torch.device("cpu")


def test_workers_draw_different_numbers_and_the_same_again() -> None:
    def draws(seed: int, rank: int) -> tuple[float, float, float]:
        rng.seed_everything(seed, rank)
        return float(torch.rand(())), float(np.random.random()), random.random()

    held = rng.capture()
    first, other, again = draws(7, 0), draws(7, 1), draws(7, 0)
    rng.restore(held)
    assert first == again
    assert all(one != two for one, two in zip(first, other, strict=True))
