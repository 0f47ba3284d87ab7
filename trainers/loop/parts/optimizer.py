"""The optimizer of a spec over the parameters of a model: which rule, which groups, the fastest kernel there is.

Invariant: weight decay and L1 are applied to tensors of two or more axes only (weights), never to biases and norms,
but where a group of the spec says so. All state is in `optimizer.state` and in plain values of the groups, so that a
checkpoint holds it.

Covered: Adam, AdamW and SGD, fused where torch has the kernel; Adafactor of torch; Lion, Muon, schedule-free AdamW
(rules.py); a function of the user's. Not covered: sparse gradients; which parameters are in which group (groups.py).
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any

import torch
from torch import nn

from cluster.errors import ModelError
from cluster.spec.optimizer import OptimizerSpec
from trainers.loop.parts.groups import parameter_groups
from trainers.loop.parts.named import load_named
from trainers.loop.parts.rules import Lion, Muon, ScheduleFree


def build_optimizer(model: nn.Module, spec: OptimizerSpec) -> torch.optim.Optimizer:
    """The optimizer over all trainable parameters, learning rate still 0 (the loop sets it before each step). Raises
    SpecError for a group that matches no parameter, ModelError for what a function of the user's returns."""
    groups = parameter_groups(model, spec)
    if spec.is_own:
        return _own(spec, groups)
    return MAKERS[spec.name](groups, spec)


class _Light(torch.optim.Optimizer):
    """torch's optimizers import torch's compiler when the first group is added, only to keep themselves out of it: a
    second of CPU in each worker before the first update. These are the same methods without that."""

    add_param_group = inspect.unwrap(torch.optim.Optimizer.add_param_group)
    state_dict = inspect.unwrap(torch.optim.Optimizer.state_dict)
    load_state_dict = inspect.unwrap(torch.optim.Optimizer.load_state_dict)
    kernel = ""
    """Which fused kernel `QuickStep` may call in place of `step`."""


class LightAdamW(_Light, torch.optim.AdamW):
    """`torch.optim.AdamW`."""

    kernel = "adam"


class LightAdam(_Light, torch.optim.Adam):
    """`torch.optim.Adam`."""

    kernel = "adam"


class LightSGD(_Light, torch.optim.SGD):
    """`torch.optim.SGD`."""

    kernel = "sgd"


class LightAdafactor(_Light, torch.optim.Adafactor):
    """`torch.optim.Adafactor`."""


class LightLion(_Light, Lion):
    """`Lion`."""


class LightMuon(_Light, Muon):
    """`Muon`."""


class LightScheduleFree(_Light, ScheduleFree):
    """`ScheduleFree`."""


def _adam(kind: type[torch.optim.Adam]) -> Callable[[list[dict], OptimizerSpec], torch.optim.Optimizer]:
    def make(groups: list[dict], spec: OptimizerSpec) -> torch.optim.Optimizer:
        return kind(groups, lr=0.0, betas=spec.constant("betas"), eps=spec.constant("eps"), fused=_can_fuse(groups))

    return make


def _sgd(groups: list[dict], spec: OptimizerSpec) -> torch.optim.Optimizer:
    momentum = spec.constant("momentum")
    nesterov = spec.constant("nesterov")
    return LightSGD(groups, lr=0.0, momentum=momentum, nesterov=nesterov, fused=_can_fuse(groups))


def _lion(groups: list[dict], spec: OptimizerSpec) -> torch.optim.Optimizer:
    return LightLion(groups, betas=spec.constant("betas"))


def _muon(groups: list[dict], spec: OptimizerSpec) -> torch.optim.Optimizer:
    values = {name: spec.constant(name) for name in ("momentum", "nesterov", "betas", "eps")}
    return LightMuon(groups, **values)


def _adafactor(groups: list[dict], spec: OptimizerSpec) -> torch.optim.Optimizer:
    return LightAdafactor(groups, lr=0.0)


def _schedule_free(groups: list[dict], spec: OptimizerSpec) -> torch.optim.Optimizer:
    return LightScheduleFree(groups, betas=spec.constant("betas"), eps=spec.constant("eps"))


MAKERS: dict[str, Callable[[list[dict], OptimizerSpec], torch.optim.Optimizer]] = {
    "adamw": _adam(LightAdamW),
    "adam": _adam(LightAdam),
    "sgd": _sgd,
    "lion": _lion,
    "muon": _muon,
    "adafactor": _adafactor,
    "schedule_free": _schedule_free,
}
"""Name in the spec -> what makes it of the groups."""


def _can_fuse(groups: list[dict]) -> bool:
    return all(p.is_floating_point() and p.device.type in ("cpu", "cuda") for g in groups for p in g["params"])


def _own(spec: OptimizerSpec, groups: list[dict]) -> torch.optim.Optimizer:
    """What the user's function makes. Raises ModelError where it is no optimizer of these parameters."""
    made: Any = load_named(spec.name, "train.optimizer.name")([dict(group) for group in groups], **spec.options)
    attempted, remedy = f"Cannot use what {spec.name} returned", "Return torch.optim.YourOptimizer(groups, …)."
    if not isinstance(made, torch.optim.Optimizer):
        kind = f"{type(made).__module__}.{type(made).__name__}"
        raise ModelError(attempted, found=f"a {kind}", rule="it returns a torch.optim.Optimizer", remedy=remedy)
    moved = {id(p) for group in made.param_groups for p in group["params"]}
    missing = {id(p) for group in groups for p in group["params"]} ^ moved
    if missing:
        raise ModelError(
            attempted, found=f"{len(missing)} parameters are not those of the groups that it was given",
            rule="it moves every trainable parameter and no other (train.optimizer.groups freezes)", remedy=remedy,
        )  # fmt: skip
    return made


def set_learning_rate(optimizer: torch.optim.Optimizer, learning_rate: float) -> None:
    """For all groups, times each one's own factor."""
    for group in optimizer.param_groups:
        group["lr"] = learning_rate * group.get("lr_factor", 1.0)


def add_l1(optimizer: torch.optim.Optimizer, weight: float) -> frozenset[int]:
    """Add the gradient of `weight` times the sum of absolute values, of all groups that decay would apply to: the
    `id`s of their parameters, which the loss now depends on."""
    penalized = [p for group in optimizer.param_groups if group.get("penalized") for p in group["params"]]
    if penalized:
        signs = torch._foreach_sign([parameter.detach() for parameter in penalized])
        torch._foreach_add_([parameter.grad for parameter in penalized], signs, alpha=weight)
    return frozenset(map(id, penalized))
