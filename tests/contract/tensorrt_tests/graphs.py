"""A small graph of any precision for TensorRT's tests: `logits = x @ w`, inputs and outputs in float32."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

OPSET = 20


def write_linear(path: Path, *, element: int = TensorProto.FLOAT, seed: int = 0) -> Path:
    """Weights of `element` (FLOAT, FLOAT16), casts at both ends where it is not FLOAT."""
    values = np.random.default_rng(seed).standard_normal((3, 2)).astype(np.float32)
    dtype = helper.tensor_dtype_to_np_dtype(element)
    weight = numpy_helper.from_array(values.astype(dtype), "w")
    if element == TensorProto.FLOAT:
        nodes = [helper.make_node("MatMul", ["x", "w"], ["logits"], name="product")]
    else:
        nodes = [
            helper.make_node("Cast", ["x"], ["x_low"], to=element),
            helper.make_node("MatMul", ["x_low", "w"], ["y_low"], name="product"),
            helper.make_node("Cast", ["y_low"], ["logits"], to=TensorProto.FLOAT),
        ]
    x = helper.make_tensor_value_info("x", TensorProto.FLOAT, ["batch", 3])
    y = helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["batch", 2])
    graph = helper.make_graph(nodes, "linear", [x], [y], [weight])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", OPSET)], ir_version=10)
    onnx.save(model, str(path))
    return path
