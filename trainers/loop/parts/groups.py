"""Parameters into the optimizer's groups: what decays, what has a learning rate of its own, what is frozen.

Invariant: every trainable parameter is in exactly one group; shared ones occur once. Without options there are two
groups, weights with decay and biases and norms without, each in the model's order.

Covered: patterns on names, decay of the learning rate by layers. Not covered: rules that change while training goes on.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterator
from fnmatch import fnmatchcase
from typing import Any

from torch import nn

from cluster.errors import SpecError
from cluster.spec.optimizer import OptimizerSpec


def freeze(model: nn.Module, spec: OptimizerSpec) -> None:
    """Parameters of groups that freeze require no gradient from now on. Raises SpecError for a pattern without one."""
    for index, group in enumerate(spec.groups):
        names = [name for name, _ in model.named_parameters()]
        if not any(fnmatchcase(name, group.match) for name in names):
            raise _matches_none(index, group.match, names)
    for name, parameter in model.named_parameters() if any(group.freeze for group in spec.groups) else ():
        if _options(spec, name).get("freeze"):
            parameter.requires_grad_(False)


def parameter_groups(model: nn.Module, spec: OptimizerSpec) -> list[dict]:
    """torch's groups, with what the loop reads of them: `lr_factor`, `penalized` (by L1) and Muon's `matrices`."""
    depths = layer_depths([name for name, _ in model.named_parameters()])
    last = max(depths.values(), default=0)
    hidden = _hidden_matrices(model) if spec.name == "muon" else set()
    found: dict[tuple, dict] = {}
    for name, parameter in _by_axes(model):
        options = _options(spec, name)
        weight = parameter.dim() > 1
        decay = options.get("weight_decay", spec.weight_decay if weight else 0.0)
        factor = options.get("learning_rate_factor", 1.0)
        if spec.layer_decay is not None:
            factor *= spec.layer_decay ** (last - depths[name])
        key = (weight, decay, factor, id(parameter) in hidden)
        group = found.setdefault(key, {"params": [], "weight_decay": decay})
        group["params"].append(parameter)
        if factor != 1.0:
            group["lr_factor"] = factor
        if spec.l1 and weight:
            group["penalized"] = True
        if spec.name == "muon":
            group["matrices"] = id(parameter) in hidden
    return list(found.values())


def _by_axes(model: nn.Module) -> Iterator[tuple[str, nn.Parameter]]:
    """Trainable parameters, weights first."""
    trainable = [(name, parameter) for name, parameter in model.named_parameters() if parameter.requires_grad]
    yield from ((name, parameter) for name, parameter in trainable if parameter.dim() > 1)
    yield from ((name, parameter) for name, parameter in trainable if parameter.dim() <= 1)


def layer_depths(names: list[str]) -> dict[str, int]:
    """Parameter -> number of its layer, in the order of the names: `blocks.3.norm.bias` belongs to `blocks.3`, names
    without a number between two numbered parts are one layer (as BEiT's layer-wise decay, arXiv:2106.08254)."""
    depths: dict[str, int] = {}
    before, depth = None, -1
    for name in names:
        parts = name.split(".")
        number = next((index for index, part in enumerate(parts) if part.isdigit()), None)
        layer = "" if number is None else ".".join(parts[: number + 1])
        if layer != before:
            before, depth = layer, depth + 1
        depths[name] = depth
    return depths


def _hidden_matrices(model: nn.Module) -> set[int]:
    """`id` of the weights that Muon is for: two axes, no embedding, and not the last one (the output layer)."""
    embedded = {id(p) for module in model.modules() if isinstance(module, nn.Embedding) for p in module.parameters()}
    matrices = [id(p) for p in model.parameters() if p.dim() == 2 and p.requires_grad and id(p) not in embedded]
    return set(matrices[:-1])


def _options(spec: OptimizerSpec, name: str) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for group in spec.groups:
        if fnmatchcase(name, group.match):
            given = group.model_dump(exclude={"match"})
            found |= {key: value for key, value in given.items() if value is not None}
    return found


def _matches_none(index: int, pattern: str, names: list[str]) -> SpecError:
    close = difflib.get_close_matches(pattern, names, n=1, cutoff=0.3)
    shown = ", ".join(names[:10]) + (", …" if len(names) > 10 else "")
    return SpecError(
        "Cannot make the optimizer's groups",
        found=f"train.optimizer.groups[{index}] has match: {pattern!r}, which no parameter matches",
        rule=f"it is a shell pattern on names; the model has {shown}",
        remedy=f"Did you mean {close[0]!r}?" if close else "Mend the pattern.",
    )
