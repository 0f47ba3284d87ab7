"""Which channels go: importance of every channel of every group, and how many of each group stay.

Sources: Li et al., "Pruning Filters for Efficient ConvNets" (2017) for magnitude; Molchanov et al., "Importance
Estimation for Neural Network Pruning" (2019) for the first-order Taylor term; Fang et al., "DepGraph" (2023) for
summing both over a group's members.

Invariant: the kept number of every group is a multiple of `round_to` (or the whole group), and at least one multiple.

Covered: uniform and global scope. Not covered: latency tables per layer.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable

import torch
from torch import nn

from cluster.spec.compress import PruneSpec
from trainers.compress.prune.groups import Group, find_groups
from trainers.compress.prune.plan import Plan, apply_plan, pruning_plan
from trainers.compress.prune.torch_pruning import find_groups_by_torch_pruning

Batches = Callable[[], Iterable[tuple[tuple[torch.Tensor, ...], torch.Tensor]]]
"""Returns an iterator of (inputs, targets): rows of the training split."""


def plan_pruning(
    module: nn.Module,
    example: tuple[torch.Tensor, ...],
    ratio: float,
    spec: PruneSpec,
    batches: Batches | None = None,
) -> Plan:
    """Choose the channels that stay when a share `ratio` goes.

    Args:
        example: a few rows of every input, to trace with.
        batches: needed for Taylor importance.
    """
    find = find_groups_by_torch_pruning if spec.tracer == "torch_pruning" else find_groups
    groups = find(module, example)
    if spec.importance == "taylor":
        assert batches is not None, "Taylor importance needs rows"
        gradients = mean_gradients(module, batches)
    else:
        gradients = None
    scores = {i: group_importance(group, module, gradients) for i, group in enumerate(groups) if not group.frozen}
    numbers = kept_numbers(scores, ratio, spec)
    kept = {i: scores[i].topk(number).indices.sort().values.tolist() for i, number in numbers.items()}
    kept = {i: channels for i, channels in kept.items() if len(channels) < groups[i].size}
    return pruning_plan(groups, kept, ratio=ratio, scope=spec.scope, importance=spec.importance, round_to=spec.round_to)


def prune_module(module: nn.Module, plan: Plan, example: tuple[torch.Tensor, ...]) -> nn.Module:
    """Cut the module in place and run it once: a forward with fixed sizes fails here, not in training."""
    apply_plan(module, plan)
    with torch.no_grad():
        module.eval()(*example)
    return module


def group_importance(group: Group, module: nn.Module, gradients: dict[str, torch.Tensor] | None) -> torch.Tensor:
    """(channels,) scores: per member the norm of a channel's weights, or |weight × gradient|, summed over members.

    Members are scaled to mean 1, so that a wide layer does not decide alone.
    """
    tensors = dict(module.named_parameters())
    total = torch.zeros(group.size)
    for place in group.places:
        weight = tensors.get(place.name)
        if weight is None or (weight.dim() == 1 and place.name.endswith("bias")):
            continue
        value = weight.detach().float()
        value = value.pow(2) if gradients is None else (value * gradients[place.name]).abs()
        others = [axis for axis in range(value.dim()) if axis != place.axis]
        score = value.sum(dim=others) if others else value
        score = score.reshape(group.size, place.inner).sum(1)
        total += score / score.mean().clamp_min(1e-12)
    return total


def kept_numbers(scores: dict[int, torch.Tensor], ratio: float, spec: PruneSpec) -> dict[int, int]:
    """How many channels of each group stay."""
    if spec.scope == "uniform" or not scores:
        wanted = {i: len(score) * (1 - ratio) for i, score in scores.items()}
    else:
        every = torch.cat([score / score.mean().clamp_min(1e-12) for score in scores.values()])
        threshold = every.sort().values[min(len(every) - 1, int(len(every) * ratio))]
        wanted = {i: float((score / score.mean().clamp_min(1e-12) >= threshold).sum()) for i, score in scores.items()}
    return {i: _round(number, len(scores[i]), spec.round_to) for i, number in wanted.items()}


def mean_gradients(module: nn.Module, batches: Batches) -> dict[str, torch.Tensor]:
    """Mean gradient of the cross entropy (or squared error) over some training rows, per parameter."""
    module.eval()
    module.zero_grad()
    count = 0
    for inputs, targets in batches():
        outputs = module(*inputs)
        floating = targets.is_floating_point()
        loss = (
            nn.functional.mse_loss(outputs[:, 0], targets)
            if floating
            else nn.functional.cross_entropy(outputs, targets)
        )
        loss.backward()
        count += 1
    found = {
        name: (parameter.grad if parameter.grad is not None else torch.zeros_like(parameter)).float() / max(1, count)
        for name, parameter in module.named_parameters()
    }
    module.zero_grad()
    return found


def _round(number: float, size: int, multiple: int) -> int:
    """The nearest multiple, at least one multiple, at most all."""
    return min(size, max(multiple, int(number / multiple + 0.5) * multiple))
