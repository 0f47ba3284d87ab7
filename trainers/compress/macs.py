"""Multiply-accumulates of one row, counted in the ONNX file itself: what the report shows for any float graph.

Invariant: never imports torch; a graph whose shapes cannot be inferred has no number rather than a wrong one.

Covered: Conv, ConvTranspose, Gemm, MatMul. Not covered: quantized forms (they do their parent's arithmetic), LSTM.
"""

from __future__ import annotations

import math
from pathlib import Path

import onnx

Shape = list[int]


def graph_macs(path: Path) -> int | None:
    """Multiply-accumulates of one row of a float graph, or None when a shape is not known."""
    model = onnx.load(str(path), load_external_data=False)
    for value in (*model.graph.input, *model.graph.output):
        dims = value.type.tensor_type.shape.dim
        if dims and dims[0].dim_param:
            dims[0].dim_value = 1
    del model.graph.value_info[:]  # the exporter wrote them for a symbolic batch
    graph = onnx.shape_inference.infer_shapes(model, data_prop=True).graph
    shapes: dict[str, Shape | None] = {tensor.name: list(tensor.dims) for tensor in graph.initializer}
    for value in (*graph.input, *graph.output, *graph.value_info):
        dims = value.type.tensor_type.shape.dim
        shapes[value.name] = [dim.dim_value for dim in dims] if all(dim.HasField("dim_value") for dim in dims) else None
    counts = [_node_macs(node, shapes) for node in graph.node]
    return None if any(count is None for count in counts) else sum(count or 0 for count in counts)


def _node_macs(node: onnx.NodeProto, shapes: dict[str, Shape | None]) -> int | None:
    if node.op_type not in ("Conv", "ConvTranspose", "Gemm", "MatMul"):
        return 0
    first, second, out = shapes.get(node.input[0]), shapes.get(node.input[1]), shapes.get(node.output[0])
    if first is None or second is None or out is None:
        return None
    if node.op_type == "Conv":
        return math.prod(out) * math.prod(second[1:])
    if node.op_type == "ConvTranspose":
        return math.prod(first) * math.prod(second[1:])
    transposed = any(attribute.name == "transA" and attribute.i for attribute in node.attribute)
    return math.prod(out) * first[0 if transposed else -1]
