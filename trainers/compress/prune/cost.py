"""Parameters and multiply-accumulates of a module: what must fall when it is pruned."""

from __future__ import annotations

import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode


def count_macs(module: nn.Module, example: tuple[torch.Tensor, ...]) -> int:
    """Multiply-accumulates of one row in convolutions and matrix products (torch counts two FLOPs each)."""
    one = tuple(tensor[:1] for tensor in example)
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        module.eval()(*one)
    return counter.get_total_flops() // 2


def count_parameters(module: nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())
