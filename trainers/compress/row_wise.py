"""Dynamic INT8 with a scale for each row: what `int8_dynamic` makes of the matrix products of a float graph.

    peak = max |x| over the last axis;  x / peak -> Q, DQ with scale 1/127 -> MatMul with INT8 weights -> * peak

ONNX Runtime's own dynamic quantization takes one range from the whole batch, so that a stranger's outlier moves
everyone's answers. Here each vector that is multiplied has its own range. What stands between Q and DQ has a constant
scale, so ONNX Runtime fuses the product into the integer kernel that it uses for static INT8.

Invariant: only standard operators, and no value of one row enters another's. The float graph is not changed.

Covered: MatMul and Gemm with constant float weights. Not covered: LSTM and fused attention (ONNX Runtime quantizes
them by the range of the batch only, so they stay in float), products of two activations.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import helper, numpy_helper
from onnxruntime.quantization import QuantType

from cluster.errors import ModelError
from trainers.compress.presets import StaticPreset

OPSET_MIN = 10  # has QuantizeLinear
CHANNEL_SCALES = 13  # opset from which DequantizeLinear takes a scale for each channel; before, a Mul applies them
AXES_ARE_INPUTS = 18  # opset from which ReduceMax takes its axes as an input
SIDE_MIN = 16  # of a weight matrix: a smaller product beside larger ones costs less than the nodes around it would
STEPS = 127  # of a signed byte to either side of 0
STEPS_REDUCED = 63  # without VNNI two products of 8 bits do not fit the 16 bits that they are summed in
TINY = np.float32(1e-30)  # the peak of a row of zeros; its reciprocal is finite


@dataclass
class _Rewrite:
    """The graph that is being written."""

    model: onnx.ModelProto
    preset: StaticPreset
    opset: int
    nodes: list[onnx.NodeProto] = field(default_factory=list)
    constants: dict[str, onnx.TensorProto] = field(default_factory=dict)
    rows: dict[str, tuple[str, str]] = field(default_factory=dict)
    """Activation -> (what is multiplied, its peaks): products of one activation share them."""

    def add(self, operator: str, inputs: list[str], output: str, **attributes: Any) -> str:
        self.nodes.append(helper.make_node(operator, inputs, [output], name=output, **attributes))
        return output

    def constant(self, name: str, value: np.ndarray | np.generic) -> str:
        if name not in self.constants:
            self.constants[name] = numpy_helper.from_array(np.asarray(value), name)
        return name


def quantize_row_wise(prepared: Path, target: Path, preset: StaticPreset) -> int:
    """Write the INT8 form of a graph that `preprocess` wrote; returns the number of products. Raises ModelError."""
    model = onnx.load(str(prepared))
    opset = next(entry.version for entry in model.opset_import if entry.domain in ("", "ai.onnx"))
    weights = {tensor.name: tensor for tensor in model.graph.initializer}
    products = {place: weights[node.input[1]].dims for place, node in enumerate(model.graph.node)
                if _is_product(node, weights)}  # fmt: skip
    chosen = {place for place, dims in products.items() if min(dims) >= SIDE_MIN} or set(products)
    if not chosen or opset < OPSET_MIN:
        raise ModelError(
            "Cannot quantize dynamically",
            found=f"the graph has opset {opset}" if chosen else "the graph has no matrix product with constant weights",
            rule=f"it needs opset {OPSET_MIN}" if chosen else "convolutions lose speed and accuracy by it",
            remedy="Export the graph with a newer opset." if chosen else "Use int8_static.",
        )
    rewrite = _Rewrite(model, preset, opset)
    for place, node in enumerate(model.graph.node):
        if place in chosen:
            _quantize_product(rewrite, node, numpy_helper.to_array(weights[node.input[1]]))
        else:
            rewrite.nodes.append(node)
    _replace(model, rewrite)
    onnx.checker.check_model(model)
    onnx.save(model, str(target))
    return len(chosen)


def _is_product(node: onnx.NodeProto, weights: dict[str, onnx.TensorProto]) -> bool:
    if node.op_type not in ("MatMul", "Gemm") or node.domain or node.input[0] in weights:
        return False
    weight = weights.get(node.input[1])
    if weight is None or weight.data_type != onnx.TensorProto.FLOAT or len(weight.dims) != 2:
        return False
    options = {attribute.name: helper.get_attribute_value(attribute) for attribute in node.attribute}
    plain = options.get("alpha", 1.0) == 1.0 and options.get("beta", 1.0) == 1.0 and not options.get("transA", 0)
    return plain


def _quantize_product(rewrite: _Rewrite, node: onnx.NodeProto, weight: np.ndarray) -> None:
    """y = MatMul(DQ(Q(x / peak)), DQ(weight)) * peak [+ bias]"""
    transposed = any(attribute.name == "transB" and attribute.i for attribute in node.attribute)
    rows, peak = _quantize_rows(rewrite, node.input[0])
    matrix = _pack(rewrite, node.input[1], weight.T if transposed else weight, transposed=transposed)
    output = node.output[0]
    product = rewrite.add("MatMul", [rows, matrix], f"{output}/product")
    if rewrite.opset < CHANNEL_SCALES:
        product = rewrite.add("Mul", [product, f"{matrix}/scale"], f"{output}/channels")
    if len(node.input) > 2 and node.input[2]:
        scaled = rewrite.add("Mul", [product, peak], f"{output}/scaled")
        rewrite.add("Add", [scaled, node.input[2]], output)
    else:
        rewrite.add("Mul", [product, peak], output)


def _quantize_rows(rewrite: _Rewrite, x: str) -> tuple[str, str]:
    """Names of (x / peak rounded to 8 bits, peak); peak is max |x| over the last axis, which is the one summed over."""
    if x in rewrite.rows:
        return rewrite.rows[x]
    axes: dict[str, Any] = {"keepdims": 1}
    inputs = [x]
    if rewrite.opset >= AXES_ARE_INPUTS:
        inputs = [x, rewrite.constant("row_wise/axes", np.array([-1], np.int64))]
    else:
        axes["axes"] = [-1]
    unsigned = rewrite.preset.activation is QuantType.QUInt8
    scale = rewrite.constant("row_wise/scale", np.float32(1 / STEPS))
    zero = rewrite.constant("row_wise/zero", np.uint8(STEPS + 1) if unsigned else np.int8(0))
    high = rewrite.add("ReduceMax", inputs, f"{x}/high", **axes)
    low = rewrite.add("Neg", [rewrite.add("ReduceMin", inputs, f"{x}/low", **axes)], f"{x}/negated")
    peak = rewrite.add("Max", [high, low, rewrite.constant("row_wise/tiny", TINY)], f"{x}/peak")
    unit = rewrite.add("Mul", [x, rewrite.add("Reciprocal", [peak], f"{x}/inverse")], f"{x}/unit")
    packed = rewrite.add("QuantizeLinear", [unit, scale, zero], f"{x}/packed")
    rewrite.rows[x] = (rewrite.add("DequantizeLinear", [packed, scale, zero], f"{x}/rounded"), peak)
    return rewrite.rows[x]


def _pack(rewrite: _Rewrite, name: str, weight: np.ndarray, *, transposed: bool) -> str:
    """Name of the (K, N) weight behind a DequantizeLinear with one scale for each output."""
    matrix = f"{name}/{'transposed/' if transposed else ''}matrix"
    if f"{matrix}/int8" in rewrite.constants:
        return matrix
    steps = STEPS_REDUCED if rewrite.preset.reduce_range else STEPS
    scale = np.maximum(np.abs(weight).max(axis=0) / steps, TINY).astype(np.float32)
    packed = np.clip(np.rint(weight / scale), -steps, steps).astype(np.int8)
    values, scales = rewrite.constant(f"{matrix}/int8", packed), rewrite.constant(f"{matrix}/scale", scale)
    if rewrite.opset < CHANNEL_SCALES:
        one, zero = rewrite.constant("row_wise/one", np.float32(1)), rewrite.constant("row_wise/signed", np.int8(0))
        return rewrite.add("DequantizeLinear", [values, one, zero], matrix)
    zeros = rewrite.constant(f"{matrix}/zero", np.zeros(len(scale), np.int8))
    return rewrite.add("DequantizeLinear", [values, scales, zeros], matrix, axis=1)


def _replace(model: onnx.ModelProto, rewrite: _Rewrite) -> None:
    """Put nodes and constants into the model, and take out the float weights that nothing reads any more."""
    read = {name for node in rewrite.nodes for name in _names(node)} | {value.name for value in model.graph.output}
    kept = [tensor for tensor in model.graph.initializer if tensor.name in read]
    inputs = [value for value in model.graph.input if value.name in read or not _is_weight(model, value.name)]
    del model.graph.node[:], model.graph.initializer[:], model.graph.input[:]
    model.graph.node.extend(rewrite.nodes)
    model.graph.initializer.extend([*kept, *rewrite.constants.values()])
    model.graph.input.extend(inputs)


def _is_weight(model: onnx.ModelProto, name: str) -> bool:
    return any(tensor.name == name for tensor in model.graph.initializer)


def _names(node: onnx.NodeProto) -> Iterator[str]:
    """What a node reads, in its branches too."""
    yield from node.input
    for attribute in node.attribute:
        for graph in (attribute.g, *attribute.graphs):
            for inner in graph.node:
                yield from _names(inner)
            yield from (value.name for value in graph.output)
