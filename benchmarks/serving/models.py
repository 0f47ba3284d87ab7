"""Graphs for the benchmarks: sized by what a row costs, not by what they could learn."""

from __future__ import annotations

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

CHANNELS = 32
LAYERS = 3  # with 32 channels on 32x32 pixels, about 0.35 ms a row on one core of the machine in result.json


def cnn_graph(item_shape: tuple[int, ...], *, num_outputs: int = 10, layers: int = LAYERS) -> onnx.ModelProto:
    """3x3 convolutions with ReLU, global average pool, logits."""
    rng = np.random.default_rng(0)
    nodes, weights, last, width = [], [], "x", item_shape[0]
    for index in range(layers):
        kernel = (rng.standard_normal((CHANNELS, width, 3, 3)) / np.sqrt(9 * width)).astype(np.float32)
        weights.append(numpy_helper.from_array(kernel, f"k{index}"))
        nodes.append(helper.make_node("Conv", [last, f"k{index}"], [f"c{index}"], pads=[1, 1, 1, 1]))
        nodes.append(helper.make_node("Relu", [f"c{index}"], [f"r{index}"]))
        last, width = f"r{index}", CHANNELS
    nodes.append(helper.make_node("GlobalAveragePool", [last], ["pooled"]))
    nodes.append(helper.make_node("Flatten", ["pooled"], ["flat"]))
    head = rng.standard_normal((CHANNELS, num_outputs)).astype(np.float32)
    weights += [numpy_helper.from_array(head, "w"), numpy_helper.from_array(np.zeros(num_outputs, np.float32), "b")]
    nodes.append(helper.make_node("Gemm", ["flat", "w", "b"], ["logits"]))
    graph = helper.make_graph(
        nodes,
        "cnn",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["batch", *item_shape])],
        [helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["batch", num_outputs])],
        weights,
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)
