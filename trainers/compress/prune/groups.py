"""Which channels must go together: followed through the module's own graph of ATen operators (torch.export).

A weight's output channels form a group. Everything that must be cut with them joins it: the batch norm behind, the
input side of the next weight, the other branch of a residual sum. An operator that mixes or reshapes channels in a way
that is not followed freezes its groups: they are left whole, never cut wrongly.

Invariant: removing channel c of a group at every place of the group leaves a module whose forward runs and computes
what it computed for inputs where channel c was zero everywhere.

Covered: convolutions (also transposed and depthwise), linear layers, batch and layer norm, embeddings, elementwise
operators, pooling, reductions, flatten/reshape/permute, residual sums, concatenation (frozen).
Not covered: attention heads (query, key and value stay whole; feed-forward layers and the residual width are cut).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn
from torch.fx import Node

from cluster.errors import ModelError
from trainers.compress.prune.reshape import match_axes

aten = torch.ops.aten


@dataclass(frozen=True)
class Label:
    """An axis of a tensor that runs over a group's channels: index = channel × inner + j."""

    group: int
    inner: int = 1


Labels = list[Label | None]
TRACE_ERRORS = (RuntimeError, TypeError, ValueError, AttributeError, AssertionError, NotImplementedError, IndexError)
"""What tracing a forward raises."""
RESIZABLE = (
    nn.Conv1d,
    nn.Conv2d,
    nn.ConvTranspose2d,
    nn.Linear,
    nn.BatchNorm1d,
    nn.BatchNorm2d,
    nn.LayerNorm,
    nn.Embedding,
)
"""Layers of torch whose sizes `apply_plan` corrects; the width of any other one stays."""


@dataclass(frozen=True)
class Place:
    """A parameter's or buffer's axis that is cut with the group."""

    name: str
    axis: int
    inner: int
    side: str
    """`out` where the group's channels are made, `in` where they are used, `norm` for what scales them."""


@dataclass
class Group:
    """Channels that are kept or removed together."""

    size: int
    places: list[Place] = field(default_factory=list)
    frozen: str | None = None
    """Why it cannot be cut, or None."""


def find_groups(module: nn.Module, example: tuple[torch.Tensor, ...]) -> list[Group]:
    """The groups of a module, those that can be cut and the frozen ones. Raises ModelError when it cannot be traced."""
    with tracing(module, "torch.export", "Remove control flow that depends on values"):
        program = torch.export.export(module, example, strict=False)
    return _Follower(program, module).follow()


@contextmanager
def tracing(module: nn.Module, tracer: str, remedy: str) -> Iterator[None]:
    """The module in eval mode, and as it was afterwards; what a tracer raises becomes one ModelError."""
    was_training = module.training
    module.eval()
    try:
        yield
    except TRACE_ERRORS as error:
        raise ModelError(
            f"Cannot prune {type(module).__name__}",
            found=f"{tracer} cannot trace its forward: {' '.join(str(error).split())[:300]}",
            rule="dependencies between channels are read from the traced graph",
            remedy=f"{remedy}, or leave 'prune' out of compress.recipes.",
        ) from error
    finally:
        module.train(was_training)


class _Follower:
    """Walks the graph once and labels every tensor's axes."""

    def __init__(self, program: torch.export.ExportedProgram, module: nn.Module) -> None:
        self.graph = program.graph
        signature = program.graph_signature
        self.names: dict[str, str] = {**signature.inputs_to_parameters, **signature.inputs_to_buffers}
        self.tensors = {**dict(module.named_parameters()), **dict(module.named_buffers())}
        self.module = module
        self.groups: list[Group] = []
        self.parent: list[int] = []
        self.labels: dict[Node, Labels] = {}
        self.owner: dict[tuple[str, int], int] = {}

    def follow(self) -> list[Group]:
        for node in self.graph.nodes:
            if node.op == "placeholder":
                self.labels[node] = [None] * _rank(node)
            elif node.op == "output":
                for one in node.all_input_nodes:
                    self._freeze(one, "it reaches the output")
            else:
                self.labels[node] = self._call(node)
        return [group for i, group in enumerate(self.groups) if self._root(i) == i]

    # operators ------------------------------------------------------------------------------------------------

    def _call(self, node: Node) -> Labels:
        packet = getattr(node.target, "overloadpacket", node.target)
        rule = RULES.get(packet)
        labels = rule(self, node) if rule else None
        if labels is not None and len(labels) == _rank(node):
            return labels
        for one in node.all_input_nodes:
            self._freeze(one, f"operator {node.target} is not followed")
        return [None] * _rank(node)

    def _weighted(self, node: Node, *, x_axis: int, out_axis: int, in_axis: int) -> Labels:
        """A convolution or linear layer: a new group for what it makes, the input's group for what it takes."""
        x, weight, bias = _args(node)[0], _args(node)[1], _args(node)[2] if len(_args(node)) > 2 else None
        name = self.names.get(weight.name)
        labels: Labels = [None] * _rank(node)
        source = self.labels[x][x_axis]
        if name is None:
            self._freeze(x, "a weight that is computed")
            return labels
        if source is not None:
            self._place(source, name, in_axis, "in")
        group = self._group_of(name, out_axis)
        if isinstance(bias, Node):
            self._place(Label(group), self.names[bias.name], 0, "out")
        labels[x_axis] = Label(group)
        return labels

    def convolution(self, node: Node) -> Labels:
        transposed = "transpose" in str(node.target)
        groups = _argument(node, "groups", 7 if transposed else 6, 1)
        x, weight = _args(node)[0], _args(node)[1]
        if groups == 1:
            out_axis, in_axis = (1, 0) if transposed else (0, 1)
            return self._weighted(node, x_axis=1, out_axis=out_axis, in_axis=in_axis)
        labels: Labels = [None] * _rank(node)
        source = self.labels[x][1]
        channels = _shape(x)[1]
        if groups == channels == _shape(node)[1] and source is not None and not transposed:
            self._place(source, self.names[weight.name], 0, "norm")
            if len(_args(node)) > 2 and isinstance(_args(node)[2], Node):
                self._place(source, self.names[_args(node)[2].name], 0, "norm")
            labels[1] = source
            return labels
        self._freeze(x, "a grouped convolution")
        return labels

    def linear(self, node: Node) -> Labels:
        last = _rank(node) - 1
        labels = self._weighted(node, x_axis=last, out_axis=0, in_axis=1)
        for axis in range(last):  # batch and positions pass through
            labels[axis] = self.labels[_args(node)[0]][axis]
        return labels

    def embedding(self, node: Node) -> Labels:
        labels: Labels = [None] * _rank(node)
        name = self.names.get(_args(node)[0].name)
        if name is not None:
            labels[-1] = Label(self._group_of(name, 1))
        return labels

    def norm(self, node: Node) -> Labels:
        """Batch norm scales axis 1, layer norm the last axis: its vectors are cut with that axis."""
        x = _args(node)[0]
        labels = list(self.labels[x])
        axis = len(labels) - 1 if "layer_norm" in str(node.target) else 1
        if "layer_norm" in str(node.target) and len(_args(node)[1]) != 1:
            self._freeze(x, "a layer norm over several axes")
            return [None] * len(labels)
        label = labels[axis]
        for argument in _args(node)[1:]:
            if isinstance(argument, Node) and label is not None:
                self._place(label, self.names[argument.name], 0, "norm")
        return labels

    def same(self, node: Node) -> Labels:
        return list(self.labels[_args(node)[0]])

    def pool(self, node: Node) -> Labels:
        before = self.labels[_args(node)[0]]
        return [*before[:2], *([None] * (len(before) - 2))]

    def elementwise(self, node: Node) -> Labels:
        """Two tensors with broadcasting: axes that meet become one group."""
        rank = _rank(node)
        labels: Labels = [None] * rank
        operands = [one for one in _args(node)[:2] if isinstance(one, Node)]
        for axis in range(rank):
            met: list[tuple[Node, int]] = []
            for one in operands:
                own = axis - (rank - _rank(one))
                if own >= 0 and _shape(one)[own] == _shape(node)[axis] != 1:
                    met.append((one, own))
            labels[axis] = self._meet(met)
        return labels

    def _meet(self, met: list[tuple[Node, int]]) -> Label | None:
        known = [label for one, own in met if (label := self.labels[one][own]) is not None]
        if not known:
            return None
        first = known[0]
        for other in known[1:]:
            if other.inner != first.inner:
                self._freeze_group(first.group, "branches of different layout are joined")
                self._freeze_group(other.group, "branches of different layout are joined")
                return None
            self._join(first.group, other.group)
        for one, own in met:
            if self.labels[one][own] is None:
                name = self.names.get(one.name)
                if name is None:
                    self._freeze_group(first.group, "it is joined with a tensor of fixed width")
                else:
                    self._place(first, name, own, "norm")
        return first

    def reduce(self, node: Node) -> Labels:
        before = self.labels[_args(node)[0]]
        axes = _argument(node, "dim", 1, None)
        keep = bool(_argument(node, "keepdim", 2, False))
        chosen = range(len(before)) if axes is None else axes if isinstance(axes, list | tuple) else [axes]
        reduced = {axis % len(before) for axis in chosen}
        for axis in reduced:
            self._freeze_label(before[axis], "a reduction over its channels")
        return [None if i in reduced else label for i, label in enumerate(before) if keep or i not in reduced]

    def reshape(self, node: Node) -> Labels:
        """Merged axes keep a label on the leading one; a split or a merge behind another axis freezes."""
        before = self.labels[_args(node)[0]]
        labels: Labels = [None] * _rank(node)
        for ins, outs in match_axes(_shape(_args(node)[0]), _shape(node)):
            labelled = [axis for axis in ins if before[axis] is not None]
            if not labelled:
                continue
            label = before[labelled[0]]
            assert label is not None, "only labelled axes are listed"
            sizes = [_shape(_args(node)[0])[axis] for axis in ins]
            leading = next((axis for axis, size in zip(ins, sizes, strict=True) if size != 1), ins[0])
            wide = [axis for axis in outs if _shape(node)[axis] != 1]
            if len(labelled) == 1 and labelled[0] == leading and len(wide) == 1:
                rest = 1
                for axis in ins:
                    rest *= 1 if axis == leading else _shape(_args(node)[0])[axis]
                labels[wide[0]] = Label(label.group, label.inner * rest)
            else:
                for axis in labelled:
                    self._freeze_label(before[axis], "its channels are reshaped")
        return labels

    def permute(self, node: Node) -> Labels:
        before = self.labels[_args(node)[0]]
        order = list(range(len(before)))
        if node.target is aten.permute.default:
            order = [axis % len(before) for axis in _args(node)[1]]
        else:
            first, second = (int(axis) % len(before) for axis in (*_args(node)[1:], 0, 1)[:2])
            order[first], order[second] = order[second], order[first]
        return [before[axis] for axis in order]

    # groups ---------------------------------------------------------------------------------------------------

    def _group_of(self, name: str, axis: int) -> int:
        """The group of a weight's output axis; a weight that is used twice has one."""
        if (name, axis) in self.owner:
            return self._root(self.owner[name, axis])
        index = len(self.groups)
        self.groups.append(Group(self.tensors[name].shape[axis]))
        self.parent.append(index)
        self._place(Label(index), name, axis, "out")
        return index

    def _place(self, label: Label, name: str, axis: int, side: str) -> None:
        root = self._root(label.group)
        held = self.owner.get((name, axis))
        if held is not None:
            self._join(root, held)
            return
        self.owner[name, axis] = root
        self.groups[root].places.append(Place(name, axis, label.inner, side))
        holder = self.module.get_submodule(name.rpartition(".")[0])
        if type(holder).__module__.startswith("torch.nn") and not isinstance(holder, RESIZABLE):
            self._freeze_group(root, f"{type(holder).__name__} keeps its width as a number")

    def _join(self, first: int, second: int) -> None:
        first, second = self._root(first), self._root(second)
        if first == second:
            return
        kept, gone = self.groups[first], self.groups[second]
        if kept.size != gone.size:
            kept.frozen = kept.frozen or "groups of different sizes meet"
        kept.places += gone.places
        kept.frozen = kept.frozen or gone.frozen
        self.parent[second] = first

    def _root(self, index: int) -> int:
        while self.parent[index] != index:
            index = self.parent[index]
        return index

    def _freeze(self, node: Node, why: str) -> None:
        for label in self.labels.get(node, []):
            self._freeze_label(label, why)

    def _freeze_label(self, label: Label | None, why: str) -> None:
        if label is not None:
            self._freeze_group(label.group, why)

    def _freeze_group(self, index: int, why: str) -> None:
        group = self.groups[self._root(index)]
        group.frozen = group.frozen or why


def _args(node: Node) -> tuple[Any, ...]:
    """Arguments of an operator: nodes, numbers and lists."""
    return node.args


def _shape(node: Any) -> list[int]:
    return [int(size) for size in node.meta["val"].shape]


def _rank(node: Node) -> int:
    value = node.meta.get("val")
    return value.dim() if isinstance(value, torch.Tensor) else 0


def _argument(node: Node, name: str, position: int, default: Any) -> Any:
    if name in node.kwargs:
        return node.kwargs[name]
    return _args(node)[position] if len(_args(node)) > position else default


_SAME = (
    *("relu", "relu_", "relu6", "gelu", "silu", "silu_", "sigmoid", "tanh", "hardtanh", "hardtanh_", "hardswish"),
    *("hardswish_", "leaky_relu", "leaky_relu_", "elu", "dropout", "dropout_", "feature_dropout", "clamp", "clamp_min"),
    *("contiguous", "clone", "to", "_to_copy", "neg", "abs", "sqrt", "exp", "pow", "alias", "detach"),
)
_POOL = ("max_pool2d", "avg_pool2d", "adaptive_avg_pool2d", "max_pool1d", "avg_pool1d", "adaptive_avg_pool1d")
_RESHAPE = ("view", "reshape", "flatten", "unsqueeze", "squeeze", "_unsafe_view")


def _rules() -> Mapping[object, Callable[[_Follower, Node], Labels]]:
    follower = _Follower
    rules: dict[object, Callable[[_Follower, Node], Labels]] = {
        getattr(aten, name): follower.same for name in _SAME if hasattr(aten, name)
    }
    rules |= {getattr(aten, name): follower.pool for name in _POOL}
    rules |= {getattr(aten, name): follower.reshape for name in _RESHAPE}
    rules |= {getattr(aten, name): follower.elementwise for name in ("add", "add_", "sub", "mul", "mul_", "div")}
    rules |= {
        getattr(aten, name): follower.convolution for name in ("conv1d", "conv2d", "conv_transpose2d", "convolution")
    }
    rules |= {getattr(aten, name): follower.reduce for name in ("mean", "sum", "amax")}
    rules |= {aten.permute: follower.permute, aten.transpose: follower.permute, aten.t: follower.permute}
    rules |= {aten.linear: follower.linear, aten.embedding: follower.embedding}
    rules |= {aten.batch_norm: follower.norm, aten.layer_norm: follower.norm}
    return rules


RULES = _rules()
