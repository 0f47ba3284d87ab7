"""A network that learns a transformed quantity: in training it returns what is learned, else the target's own unit.

Invariant: the way back into the unit has no weights and works in float32 or wider whatever the network computes in;
it is the module's last part, so that whatever evaluates, exports or serves the module has the target's unit. In an
exported graph its nodes are named by `TARGET_UNIT`.
"""

from __future__ import annotations

import torch
from torch import nn

from cluster.bundle.target import TARGET_UNIT, TargetTransform


class TargetUnit(nn.Module):
    """Learned values of any shape -> the target's own unit."""

    def __init__(self, transform: TargetTransform) -> None:
        super().__init__()
        self.transform = transform

    def forward(self, learned: torch.Tensor) -> torch.Tensor:
        wide = learned if learned.dtype.itemsize >= 4 else learned.float()
        return self.transform.to_unit(wide, torch)


class TransformedTarget(nn.Module):
    """(N, 1) of a network -> the same in training, in the target's own unit else."""

    def __init__(self, network: nn.Module, transform: TargetTransform) -> None:
        super().__init__()
        self.network = network
        self.add_module(TARGET_UNIT, TargetUnit(transform))

    def forward(self, *inputs: torch.Tensor) -> torch.Tensor:
        learned = self.network(*inputs)
        return learned if self.training else self.get_submodule(TARGET_UNIT)(learned)


def answers_learned(module: nn.Module) -> nn.Module:
    """The part of a module that answers learned values in every mode: what a student is compared with."""
    return module.network if isinstance(module, TransformedTarget) else module
