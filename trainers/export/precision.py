"""In which precision an ONNX graph and a TensorRT engine compute: proved, not believed.

TensorRT 11 takes its precision from the graph; a request that the graph does not carry builds an FP32 engine without a
word (roboflow/rf-detr#1453). So a request is proved from the ONNX before the build and from the inspector after it.

Invariant: `prove_graph` and `prove_engine` return facts or raise; they never warn.

Covered: fp32, fp16, bf16, int8 by Q/DQ. Not covered: FP8, INT4.
"""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path
from typing import Any, Literal

import numpy as np
import onnx
from onnx import numpy_helper

from cluster.errors import ModelError

Precision = Literal["fp32", "fp16", "bf16", "int8"]
WEIGHTED = ("Conv", "ConvTranspose", "Gemm", "MatMul")
ELEMENT_OF = {"fp32": onnx.TensorProto.FLOAT, "fp16": onnx.TensorProto.FLOAT16, "bf16": onnx.TensorProto.BFLOAT16}
ENGINE_TYPE_OF = {  # "BFloat16" holds "Float": the longer names come first
    "bf16": ("BF16", "BFloat16"),
    "fp16": ("FP16", "Half"),
    "fp32": ("FP32", "Float"),
    "int8": ("Int8", "INT8"),
}
SHARE_MIN = 0.5  # of layers with weights: fewer means that the request did not arrive


def graph_census(path: Path) -> dict[str, Any]:
    """Counts by element type of weights, and of Q/DQ pairs with their zero points."""
    model = onnx.load(str(path))
    tensors = {tensor.name: tensor for tensor in model.graph.initializer}
    made_by = {output: node for node in model.graph.node for output in node.output}
    weights: Counter[str] = Counter()
    quantized = 0
    layers = [node for node in model.graph.node if node.op_type in WEIGHTED]
    for node in layers:
        source = made_by.get(node.input[1])
        if source is not None and source.op_type == "DequantizeLinear":
            quantized += 1
        kind = _weight_type(node.input[1], tensors, made_by)
        weights[kind] += 1
    zero_points = _zero_points(model, tensors)
    return {
        "layers": len(layers),
        "weights": dict(weights),
        "quantized_layers": quantized,
        "quantize_nodes": sum(node.op_type == "QuantizeLinear" for node in model.graph.node),
        "dequantize_nodes": sum(node.op_type == "DequantizeLinear" for node in model.graph.node),
        "zero_points_all_zero": all(not value.any() for value in zero_points),
        "zero_point_types": sorted({str(value.dtype) for value in zero_points}),
    }


def prove_graph(path: Path, precision: Precision) -> dict[str, Any]:
    """The census, if the graph carries the precision. Raises ModelError."""
    census = graph_census(path)
    attempted = f"Cannot build a {precision} engine from {path.name}"
    layers = max(1, census["layers"])
    if precision == "int8":
        if census["quantized_layers"] / layers < SHARE_MIN:
            raise ModelError(
                attempted,
                found=f"{census['quantized_layers']} of {census['layers']} layers have quantized weights",
                rule="TensorRT 11 takes INT8 from Q/DQ pairs in the graph, it does not quantize",
                remedy="Make the graph with compress.target.device: gpu and recipe int8_static.",
            )
        if not census["zero_points_all_zero"] or "uint8" in census["zero_point_types"]:
            raise ModelError(
                attempted,
                found=f"zero points have types {census['zero_point_types']} and are not all 0",
                rule="TensorRT takes symmetric INT8 only: signed, zero point 0",
                remedy="Quantize with compress.target.device: gpu; the CPU preset is not symmetric.",
            )
        return census
    have = census["weights"].get(precision, 0)
    if have / layers < SHARE_MIN:
        raise ModelError(
            attempted,
            found=f"{have} of {census['layers']} layers have {precision} weights (found {census['weights']})",
            rule="TensorRT 11 takes the precision from the graph; asking for it changes nothing",
            remedy="Convert the graph first (recipe fp16).",
        )
    return census


def prove_engine(inspector_json: str, precision: Precision) -> dict[str, int]:
    """Layers by output type, if most layers that compute have the precision. Raises ModelError.

    Args:
        inspector_json: `EngineInspector.get_engine_information(LayerInformationFormat.JSON)` of an engine that was
            built with `ProfilingVerbosity.DETAILED`.
    """
    counts: Counter[str] = Counter()
    for layer in json.loads(inspector_json).get("Layers", []):
        if isinstance(layer, str):
            raise ModelError(
                "Cannot prove the engine's precision",
                found="the inspector lists names only",
                rule="layers list their types only in engines built with detailed profiling verbosity",
            )
        for tensor in layer.get("Inputs", []):
            counts[_engine_type(str(tensor.get("Format/Datatype", tensor.get("Datatype", ""))))] += 1
    wanted = counts[precision]
    if not wanted:
        raise ModelError(
            f"Cannot use the engine as {precision}",
            found=f"no layer reads {precision}: {dict(counts)}",
            rule="the precision that was asked for must be in the engine",
            remedy="Look at the builder's log: the graph's types were not kept.",
        )
    return dict(counts)


def _weight_type(name: str, tensors: dict[str, onnx.TensorProto], made_by: dict[str, onnx.NodeProto]) -> str:
    """Element type of the initializer behind casts and Q/DQ pairs, or `computed`."""
    for _ in range(4):  # weight, QuantizeLinear, DequantizeLinear, Cast
        if name in tensors:
            kind = tensors[name].data_type
            if kind in (onnx.TensorProto.INT8, onnx.TensorProto.UINT8):
                return "int8"
            return next((label for label, element in ELEMENT_OF.items() if element == kind), str(kind))
        if name not in made_by or not made_by[name].input:
            break
        name = made_by[name].input[0]
    return "computed"


def _zero_points(model: onnx.ModelProto, tensors: dict[str, onnx.TensorProto]) -> list[np.ndarray]:
    names = {
        node.input[2]
        for node in model.graph.node
        if node.op_type in ("QuantizeLinear", "DequantizeLinear") and len(node.input) > 2
    }
    found = [numpy_helper.to_array(tensors[name]) for name in names if name in tensors]
    return [value for value in found if value.dtype != np.int32]  # int32: the bias, which has no zero point


def _engine_type(text: str) -> str:
    for precision, names in ENGINE_TYPE_OF.items():
        if any(name in text for name in names):
            return precision
    return text or "unknown"
