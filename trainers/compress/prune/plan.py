"""The pruning plan: which indices of which tensors stay, as JSON. With the spec and the weights it rebuilds the module.

Invariant: `apply_plan(build(), plan)` has exactly the shapes of the pruned weights, on every machine, without pickle.

Covered: any module whose layers derive their sizes from their weights. Not covered: a forward with sizes written into
it as numbers (it fails when it is run, which `apply_plan`'s caller does).
"""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from cluster.errors import ModelError
from trainers.compress.prune.groups import Group

FORMAT = 1
Plan = dict[str, Any]
"""`{"format": 1, "keep": {tensor: {axis: [kept indices]}}, "ratio": …, "groups": […]}`."""


def pruning_plan(groups: list[Group], kept: dict[int, list[int]], **notes: Any) -> Plan:
    """Kept channels of group i -> kept indices of every tensor."""
    keep: dict[str, dict[str, list[int]]] = {}
    for index, channels in kept.items():
        for place in groups[index].places:
            indices = [channel * place.inner + j for channel in channels for j in range(place.inner)]
            keep.setdefault(place.name, {})[str(place.axis)] = indices
    sizes = [
        {"channels": group.size, "kept": len(kept.get(i, range(group.size))), "frozen": group.frozen}
        for i, group in enumerate(groups)
    ]
    return {"format": FORMAT, "keep": keep, "groups": sizes, **notes}


def apply_plan(module: nn.Module, plan: Plan) -> nn.Module:
    """Cut the module's tensors in place and correct its layers' sizes. Raises ModelError for a foreign plan."""
    if plan.get("format") != FORMAT:
        raise ModelError(
            "Cannot apply the pruning plan",
            found=f"it has format {plan.get('format')!r}",
            rule=f"this Manta reads format {FORMAT}",
        )
    tensors = {**dict(module.named_parameters()), **dict(module.named_buffers())}
    for name, axes in plan["keep"].items():
        tensor = tensors.get(name)
        if tensor is None or any(
            int(axis) >= tensor.dim() or (rows and max(rows) >= tensor.shape[int(axis)]) for axis, rows in axes.items()
        ):
            raise ModelError(
                "Cannot apply the pruning plan",
                found=f"it cuts {name}, which this module does not have in that shape",
                rule="a plan belongs to one model section of a spec",
                remedy="Use the spec that the plan was made with.",
            )
        cut = tensor.detach()
        for axis, rows in axes.items():
            cut = cut.index_select(int(axis), torch.tensor(rows, dtype=torch.int64, device=cut.device))
        _replace(module, name, cut.contiguous())
    for child in module.modules():
        _correct_sizes(child)
    return module


def _replace(module: nn.Module, name: str, value: torch.Tensor) -> None:
    path, _, leaf = name.rpartition(".")
    owner = module.get_submodule(path)
    if leaf in owner._parameters:
        old = owner._parameters[leaf]
        owner._parameters[leaf] = nn.Parameter(value, requires_grad=bool(old is None or old.requires_grad))
    else:
        owner._buffers[leaf] = value


def _correct_sizes(layer: nn.Module) -> None:
    """Layers keep their sizes beside their weights; some forwards read them."""
    weight = getattr(layer, "weight", None)
    if not isinstance(weight, torch.Tensor):
        return
    if isinstance(layer, nn.Conv1d | nn.Conv2d | nn.Conv3d):
        depthwise = layer.groups > 1 and layer.groups == layer.in_channels
        layer.out_channels = weight.shape[0]
        layer.groups = weight.shape[0] if depthwise else layer.groups
        layer.in_channels = weight.shape[1] * layer.groups
    elif isinstance(layer, nn.ConvTranspose2d):
        layer.in_channels, layer.out_channels = weight.shape[0], weight.shape[1] * layer.groups
    elif isinstance(layer, nn.Linear):
        layer.out_features, layer.in_features = weight.shape
    elif isinstance(layer, nn.modules.batchnorm._BatchNorm):
        layer.num_features = weight.shape[0]
    elif isinstance(layer, nn.LayerNorm):
        layer.normalized_shape = tuple(weight.shape)
    elif isinstance(layer, nn.Embedding):
        layer.num_embeddings, layer.embedding_dim = weight.shape
