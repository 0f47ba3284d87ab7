"""The same groups by Torch-Pruning (Fang et al., "DepGraph", 2023): a second opinion, and a reference for our own.

Only its dependency graph is used: which channels go, the plan and its application stay ours, so that a network from
either is rebuilt from JSON and safetensors. It needs autograd while it traces, and pickles no module here.

Invariant: a group with a layer whose size `apply_plan` does not correct, or whose channels nothing uses, is frozen.

Covered: torch-pruning 1.6. Not covered: attention heads (frozen, as in groups.py).
"""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from cluster.errors import MissingDependencyError
from trainers.compress.prune.groups import RESIZABLE, Group, Place, tracing

NORMS = (nn.BatchNorm1d, nn.BatchNorm2d, nn.LayerNorm)
ROOTS = [nn.Conv1d, nn.Conv2d, nn.ConvTranspose2d, nn.Linear, nn.Embedding]


def find_groups_by_torch_pruning(module: nn.Module, example: tuple[torch.Tensor, ...]) -> list[Group]:
    """The groups of a module. Raises MissingDependencyError without the package, ModelError when it cannot trace."""
    try:
        import torch_pruning
    except ImportError:
        raise MissingDependencyError(
            "Cannot find channels that hang together",
            found="the package torch-pruning is not installed",
            rule="compress.prune.tracer: torch_pruning needs it",
            remedy="Install the extra: pip install 'manta-ml[prune]', or set compress.prune.tracer to own.",
        ) from None
    with tracing(module, "Torch-Pruning", "Set compress.prune.tracer to own"):
        graph = torch_pruning.DependencyGraph().build_dependency(module, example_inputs=example)
        found = list(graph.get_all_groups(root_module_types=ROOTS))
    names = {layer: name for name, layer in module.named_modules()}
    return [_group(items, names) for items in found]


def _group(items: Any, names: dict[nn.Module, str]) -> Group:
    _, channels = items[0]
    group = Group(len(channels))
    for dependency, indices in items:
        layer = dependency.target.module
        if layer not in names:  # a node of the graph without weights
            continue
        inner, rest = divmod(len(indices), group.size)
        if rest or list(indices) != list(range(len(indices))):
            group.frozen = "its channels are reshaped"
        elif not isinstance(layer, RESIZABLE):
            group.frozen = f"{type(layer).__name__} keeps its width as a number"
        else:
            known = {(place.name, place.axis) for place in group.places}
            places = _places(layer, names[layer], inner, dependency.handler.__name__)
            group.places += [place for place in places if (place.name, place.axis) not in known]
    if not group.frozen and not any(place.side == "in" for place in group.places):
        group.frozen = "it reaches the output"
    return group


def _places(layer: nn.Module, name: str, inner: int, handler: str) -> list[Place]:
    """The tensors' axes of one layer that are cut with the group."""
    prefix = f"{name}." if name else ""
    transposed = isinstance(layer, nn.ConvTranspose2d)
    if handler.endswith("in_channels") and not isinstance(layer, NORMS):
        return [Place(f"{prefix}weight", 0 if transposed else 1, inner, "in")]
    own = {**dict(layer.named_parameters(recurse=False)), **dict(layer.named_buffers(recurse=False))}
    scaled = isinstance(layer, NORMS) or getattr(layer, "groups", 1) > 1
    side = "norm" if scaled else "out"
    weight_axis = 1 if transposed or isinstance(layer, nn.Embedding) else 0
    return [
        Place(prefix + key, weight_axis if key == "weight" else 0, inner, side)
        for key, tensor in own.items()
        if tensor.dim()
    ]
