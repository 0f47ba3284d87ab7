"""The optimizer: which parameters decay, and the fastest kernel there is for them.

Invariant: weight decay is applied to tensors of two or more axes only (weights), never to biases and norms.

Covered: AdamW and SGD, fused where torch has the kernel. Not covered: sparse gradients.
"""

from __future__ import annotations

import torch
from torch import nn

from cluster.spec.train import OptimizerSpec


def build_optimizer(model: nn.Module, spec: OptimizerSpec) -> torch.optim.Optimizer:
    """The optimizer over all trainable parameters, learning rate still 0 (the loop sets it before each step)."""
    groups = parameter_groups(model, spec.weight_decay)
    fused = all(p.is_floating_point() and p.device.type in ("cpu", "cuda") for g in groups for p in g["params"])
    if spec.name == "sgd":
        return torch.optim.SGD(groups, lr=0.0, momentum=spec.momentum, nesterov=spec.nesterov, fused=fused)
    return torch.optim.AdamW(groups, lr=0.0, betas=spec.betas, fused=fused)


def parameter_groups(model: nn.Module, weight_decay: float) -> list[dict]:
    """Two groups: weights with decay, biases and norms without. Shared parameters occur once; order is the model's."""
    trainable = [parameter for parameter in model.parameters() if parameter.requires_grad]
    decayed = [parameter for parameter in trainable if parameter.dim() > 1]
    plain = [parameter for parameter in trainable if parameter.dim() <= 1]
    groups = [{"params": decayed, "weight_decay": weight_decay}, {"params": plain, "weight_decay": 0.0}]
    return [group for group in groups if group["params"]]


def set_learning_rate(optimizer: torch.optim.Optimizer, learning_rate: float) -> None:
    """For all groups."""
    for group in optimizer.param_groups:
        group["lr"] = learning_rate
