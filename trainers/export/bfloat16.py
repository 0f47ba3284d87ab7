"""A float graph in BF16: weights and arithmetic of every operator that ONNX defines for it, casts where it does not.

TensorRT takes the precision from the graph, so the conversion is made there. ONNX gave BF16 to Conv and pooling with
opset 22 only: a network of convolutions must be exported with `export.opset: 22`.

Invariant: inputs and outputs keep their types; a node is converted only if its operator's schema at the file's opset
allows BF16 for it; operators whose sums or exponents need FP32's mantissa stay in FP32; the result has most of its
weights in BF16 or an error is raised.

Covered: graphs of one level. Not covered: nodes inside branches and loops, which stay in FP32. FP16 is made by ONNX
Runtime's converter (trainers/compress/quantize.py).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper, shape_inference

from cluster.errors import ModelError
from trainers.export.graph_file import graph_facts, unit_nodes
from trainers.export.precision import prove_graph

BF16_TYPE = "tensor(bfloat16)"
OPSET_OF_CONV = 22
KEPT = frozenset(
    {"Softmax", "LogSoftmax", "LayerNormalization", "RMSNormalization", "InstanceNormalization", "GroupNormalization",
     "Exp", "Log", "Pow", "Erf", "ReduceSum", "ReduceMean", "ReduceL2", "ReduceLogSumExp", "CumSum", "TopK", "Resize",
     "Cast", "Constant", "ConstantOfShape", "Range", "QuantizeLinear", "DequantizeLinear"}
)  # fmt: skip
"""Sums, exponents and statistics: 8 bits of mantissa are too few for them (as in torch.autocast's FP32 list)."""


def convert_bf16(source: Path, target: Path) -> None:
    """Write the BF16 form of a float graph. Raises ModelError when most weights cannot be BF16."""
    model = shape_inference.infer_shapes(onnx.load(str(source)), data_prop=True)
    opset = graph_facts(onnx.load(str(source), load_external_data=False), source).opset
    _Conversion(model, opset).run()
    onnx.save(model, str(target))
    try:
        onnx.checker.check_model(str(target), full_check=True)
        prove_graph(target, "bf16")
    except ModelError as error:
        target.unlink()
        raise ModelError(
            f"Cannot convert {source.name} to BF16",
            found=f"{error.found}; the graph has opset {opset}",
            rule=f"ONNX knows BF16 convolutions from opset {OPSET_OF_CONV} on",
            remedy=f"Set export.opset to {OPSET_OF_CONV}."
            if opset < OPSET_OF_CONV
            else "Leave bf16 out of compress.recipes.",
        ) from error


def to_bfloat16(values: np.ndarray) -> np.ndarray:
    """float32 -> the upper 16 bits as uint16, rounded to nearest, ties to even. NaN stays NaN."""
    bits = values.astype(np.float32).view(np.uint32)
    rounded = ((bits + 0x7FFF + ((bits >> 16) & 1)) >> 16).astype(np.uint16)
    return np.where(np.isnan(values), np.uint16(0x7FC0), rounded)


@dataclass
class _Conversion:
    """One graph on its way."""

    model: onnx.ModelProto
    opset: int
    types: dict[str, int] = field(default_factory=dict)
    """Element type of every value of the float graph."""
    low: dict[str, str] = field(default_factory=dict)
    """Float value -> its BF16 twin."""
    nodes: list[onnx.NodeProto] = field(default_factory=list)

    def run(self) -> None:
        graph = self.model.graph
        self.kept = set(unit_nodes(self.model))
        self.weights = {tensor.name: tensor for tensor in graph.initializer}
        self.types = {name: tensor.data_type for name, tensor in self.weights.items()}
        for value in (*graph.input, *graph.output, *graph.value_info):
            self.types[value.name] = value.type.tensor_type.elem_type
        for node in graph.node:
            self._convert(node) if self._allows(node) else self.nodes.append(node)
        del graph.node[:]
        graph.node.extend(self.nodes)
        _drop_unused(graph)
        del graph.value_info[:]

    def _allows(self, node: onnx.NodeProto) -> bool:
        """Whether the operator's schema takes BF16 wherever this node has float32."""
        if (
            node.name in self.kept
            or node.domain not in ("", "ai.onnx")
            or node.op_type in KEPT
            or any(a.HasField("g") for a in node.attribute)
        ):
            return False
        try:
            schema = onnx.defs.get_schema(node.op_type, self.opset, "")
        except onnx.defs.SchemaError:
            return False
        allowed = {one.type_param_str: set(one.allowed_type_strs) for one in schema.type_constraints}
        floats = [*self._formal(node.input, schema.inputs), *self._formal(node.output, schema.outputs)]
        return bool(floats) and all(BF16_TYPE in allowed.get(kind, set()) for kind in floats)

    def _formal(self, names: Sequence[str], formal: Sequence[onnx.defs.OpSchema.FormalParameter]) -> list[str]:
        """Type variables of the float32 values among `names`. The last formal parameter may repeat."""
        return [
            formal[min(i, len(formal) - 1)].type_str
            for i, name in enumerate(names)
            if self.types.get(name) == TensorProto.FLOAT
        ]

    def _convert(self, node: onnx.NodeProto) -> None:
        made = onnx.NodeProto()
        made.CopyFrom(node)
        made.input[:] = [self._lowered(name) for name in node.input]
        casts = []
        for i, name in enumerate(node.output):
            if self.types.get(name) == TensorProto.FLOAT:
                made.output[i] = self.low[name] = f"{name}_bf16"
                casts.append(helper.make_node("Cast", [made.output[i]], [name], f"{name}_fp32", to=TensorProto.FLOAT))
        self.nodes += [made, *casts]

    def _lowered(self, name: str) -> str:
        """Name of the value's BF16 twin, made where there is none yet."""
        if self.types.get(name) != TensorProto.FLOAT:
            return name
        if name not in self.low:
            self.low[name] = f"{name}_bf16"
            if name in self.weights:
                self._add_weight(name)
            else:
                self.nodes.append(
                    helper.make_node("Cast", [name], [f"{name}_bf16"], f"{name}_low", to=TensorProto.BFLOAT16)
                )
        return self.low[name]

    def _add_weight(self, name: str) -> None:
        values = numpy_helper.to_array(self.weights[name])
        made = TensorProto(name=self.low[name], data_type=TensorProto.BFLOAT16, dims=values.shape)
        made.raw_data = to_bfloat16(values).astype("<u2").tobytes()
        self.model.graph.initializer.append(made)


def _drop_unused(graph: onnx.GraphProto) -> None:
    """Remove casts that nobody reads, then weights that nobody reads."""
    read = Counter(name for node in graph.node for name in _reads(node))
    read.update(value.name for value in graph.output)
    kept = [node for node in graph.node if node.op_type != "Cast" or read[node.output[0]]]
    del graph.node[:]
    graph.node.extend(kept)
    read = Counter(name for node in graph.node for name in _reads(node))
    weights = [tensor for tensor in graph.initializer if read[tensor.name]]
    del graph.initializer[:]
    graph.initializer.extend(weights)


def _reads(node: onnx.NodeProto) -> list[str]:
    """Names that a node and the graphs inside it read."""
    inner = [name for a in node.attribute if a.HasField("g") for one in a.g.node for name in _reads(one)]
    return [*node.input, *inner, *(value.name for a in node.attribute if a.HasField("g") for value in a.g.output)]
