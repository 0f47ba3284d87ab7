"""An exponential moving average of the parameters.

    decay_n = min(decay, (1 + n) / (10 + n));  ema = decay_n · ema + (1 - decay_n) · parameter

Invariant: it moves once per update that was made; a skipped window leaves it. Buffers (batch norm statistics) are not
averaged: under the average the model uses its own.

Covered: update, use for evaluation, state. Not covered: averages over several rates.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import nn

from cluster.spec.train import EmaSpec

WARM_OFFSET = 10  # (1 + n) / (10 + n): TensorFlow's ExponentialMovingAverage with num_updates


class Ema:
    """The average of a model's trainable parameters."""

    def __init__(self, model: nn.Module, spec: EmaSpec) -> None:
        self.decay = spec.decay
        named = [(name, parameter) for name, parameter in model.named_parameters() if parameter.requires_grad]
        self.names = [name for name, _ in named]
        self.parameters = [parameter for _, parameter in named]
        self.averages = [parameter.detach().clone() for parameter in self.parameters]

    @torch.no_grad()
    def update(self, updates_made: int) -> None:
        """After update number `updates_made`, counted from 0."""
        decay = min(self.decay, (1 + updates_made) / (WARM_OFFSET + updates_made))
        torch._foreach_lerp_(self.averages, [p.detach() for p in self.parameters], 1 - decay)

    @contextmanager
    def applied(self) -> Iterator[None]:
        """The model holds the averages inside, its own weights outside. Swaps storage: copies nothing."""
        self._swap()
        try:
            yield
        finally:
            self._swap()

    def state(self) -> dict[str, torch.Tensor]:
        return dict(zip(self.names, self.averages, strict=True))

    def load(self, state: dict[str, torch.Tensor]) -> None:
        with torch.no_grad():
            for name, average in zip(self.names, self.averages, strict=True):
                average.copy_(state[name])

    def _swap(self) -> None:
        for i, parameter in enumerate(self.parameters):
            parameter.data, self.averages[i] = self.averages[i], parameter.data
