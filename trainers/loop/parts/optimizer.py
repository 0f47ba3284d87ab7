"""The optimizer: which parameters decay, and the fastest kernel there is for them.

Invariant: weight decay is applied to tensors of two or more axes only (weights), never to biases and norms.

Covered: AdamW and SGD, fused where torch has the kernel. Not covered: sparse gradients.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable

import torch
from torch import nn

from cluster.spec.train import OptimizerSpec


def build_optimizer(model: nn.Module, spec: OptimizerSpec) -> torch.optim.Optimizer:
    """The optimizer over all trainable parameters, learning rate still 0 (the loop sets it before each step)."""
    groups = parameter_groups(model, spec.weight_decay)
    fused = all(p.is_floating_point() and p.device.type in ("cpu", "cuda") for g in groups for p in g["params"])
    if spec.name == "sgd":
        return LightSGD(groups, lr=0.0, momentum=spec.momentum, nesterov=spec.nesterov, fused=fused)
    return LightAdamW(groups, lr=0.0, betas=spec.betas, fused=fused)


class _Light(torch.optim.Optimizer):
    """torch's optimizers import torch's compiler when the first group is added, only to keep themselves out of it: a
    second of CPU in each worker before the first update. These are the same methods without that."""

    add_param_group = inspect.unwrap(torch.optim.Optimizer.add_param_group)
    state_dict = inspect.unwrap(torch.optim.Optimizer.state_dict)
    load_state_dict = inspect.unwrap(torch.optim.Optimizer.load_state_dict)


class LightAdamW(_Light, torch.optim.AdamW):
    """`torch.optim.AdamW`."""


class LightSGD(_Light, torch.optim.SGD):
    """`torch.optim.SGD`."""


class QuickStep:
    """`optimizer.step()` of a fused optimizer: the same kernel on the same tensors, gathered once instead of at every
    step (torch groups all tensors by device and datatype each time, which takes longer than the kernel of a small
    network). `skip` on the device makes the kernel leave everything as it is, so that the host need not know.

    Moments start at zero, as torch's do. SGD's momentum starts at zero too; torch sets it to the first gradient, which
    is what the first step makes of zero.
    """

    def __init__(self, optimizer: torch.optim.Optimizer) -> None:
        self.optimizer = optimizer
        self._of: object = None
        self._calls: list[Callable[[torch.Tensor | None], None]] = []

    @property
    def ready(self) -> bool:
        """Whether there is such a kernel; else `step` is the optimizer's own."""
        if self._of is not self.optimizer.state:  # another object after load_state_dict
            self._gather()
        return bool(self._calls)

    def step(self, skip: torch.Tensor | None = None) -> None:
        """`skip`: 0-d float32 on the device, 1 to change nothing; needs `ready`."""
        if not self.ready:
            assert skip is None, "without the kernel the host decides"
            self.optimizer.step()
            return
        for call in self._calls:
            call(skip)

    def _gather(self) -> None:
        groups, self._of = self.optimizer.param_groups, self.optimizer.state
        adam = isinstance(self.optimizer, torch.optim.AdamW)
        known = adam or isinstance(self.optimizer, torch.optim.SGD)
        self._calls = []
        if known and all(group.get("fused") and not group["maximize"] for group in groups):
            self._calls = [(_adamw_call if adam else _sgd_call)(group, self._of) for group in groups]


def _adamw_call(group: dict, state: dict) -> Callable[[torch.Tensor | None], None]:
    parameters = group["params"]
    for parameter in parameters:
        if not state.get(parameter):
            zeros = [torch.zeros_like(parameter, memory_format=torch.preserve_format) for _ in range(2)]
            count = torch.zeros((), dtype=torch.float32, device=parameter.device)
            state[parameter] = {"step": count, "exp_avg": zeros[0], "exp_avg_sq": zeros[1]}
    steps = torch.stack([state[p]["step"].reshape(()) for p in parameters])
    for parameter, step in zip(parameters, steps.unbind(), strict=True):
        state[parameter]["step"] = step  # views of one tensor: counting is one operation
    gradients = [p.grad for p in parameters]
    averages, squares = ([state[p][name] for p in parameters] for name in ("exp_avg", "exp_avg_sq"))
    views, (beta1, beta2) = list(steps.unbind()), group["betas"]

    def call(skip: torch.Tensor | None) -> None:
        steps.add_(1 if skip is None else 1 - skip)
        torch._fused_adamw_(
            parameters,
            gradients,
            averages,
            squares,
            [],
            views,
            lr=group["lr"],
            beta1=beta1,
            beta2=beta2,
            weight_decay=group["weight_decay"],
            eps=group["eps"],
            amsgrad=False,
            maximize=False,
            found_inf=skip,
        )

    return call


def _sgd_call(group: dict, state: dict) -> Callable[[torch.Tensor | None], None]:
    parameters, momentum = group["params"], group["momentum"]
    for parameter in parameters if momentum else ():
        if state.get(parameter, {}).get("momentum_buffer") is None:
            state[parameter] = {"momentum_buffer": torch.zeros_like(parameter, memory_format=torch.preserve_format)}
    gradients = [p.grad for p in parameters]
    buffers = [state[p]["momentum_buffer"] for p in parameters] if momentum else []

    def call(skip: torch.Tensor | None) -> None:
        torch._fused_sgd_(
            parameters,
            gradients,
            buffers,
            weight_decay=group["weight_decay"],
            momentum=momentum,
            lr=group["lr"],
            dampening=group["dampening"],
            nesterov=group["nesterov"],
            maximize=False,
            is_first_step=False,
            found_inf=skip,
        )

    return call


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
