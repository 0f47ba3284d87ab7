"""In which precision an ONNX graph and a TensorRT engine compute: proved from the graph, not assumed.

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
ENGINE_PARAMETER_TYPES = ("Convolution", "Deconvolution", "FullyConnected", "MatrixMultiply")
ENGINE_KERNEL_WORDS = ("conv", "gemm", "matmul", "fprop", "matrixmultiply")
SHARE_MIN = 0.5  # of layers with weights: fewer means that the request did not arrive


def graph_census(path: Path) -> dict[str, Any]:
    """Counts by element type of weights, of layers between Q/DQ pairs, and the pairs' zero points."""
    model = onnx.load(str(path), load_external_data=False)  # types are known without the weights' bytes
    tensors = {tensor.name: tensor for tensor in model.graph.initializer}
    made_by = {output: node for node in model.graph.node for output in node.output}
    weights: Counter[str] = Counter()
    quantized = 0
    layers = [node for node in model.graph.node if node.op_type in WEIGHTED]
    for node in layers:
        # weights alone in INT8 are computed in float: TensorRT needs a pair on both sides of the product
        sources = [made_by.get(name) for name in node.input[:2]]
        if all(source is not None and source.op_type == "DequantizeLinear" for source in sources):
            quantized += 1
        kind = _weight_type(node.input[1], tensors, made_by)
        weights[kind] += 1
    zero_points = _zero_points(model, tensors, path.parent)
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
                found=f"{census['quantized_layers']} of {census['layers']} layers have Q/DQ pairs on input and weights",
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
            remedy="Convert the graph first: compress.recipes has fp16 and bf16.",
        )
    return census


def prove_engine(inspector_json: str, precision: Precision) -> dict[str, Any]:
    """Types that the engine's layers read, if most layers that multiply read the precision. Raises ModelError.

    Args:
        inspector_json: `EngineInspector.get_engine_information(LayerInformationFormat.JSON)` of an engine that was
            built with `ProfilingVerbosity.DETAILED`.
    """
    layers = json.loads(inspector_json).get("Layers", [])
    if not layers or any(isinstance(layer, str) for layer in layers):
        raise ModelError(
            "Cannot prove the engine's precision",
            found="the inspector lists names only" if layers else "the inspector lists no layers",
            rule="layers list their types only in engines built with detailed profiling verbosity",
            remedy="Build the engine again with this program.",
        )
    multiplying = [layer for layer in layers if _multiplies(layer)] or layers
    reads = Counter(kind for layer in multiplying for kind in _reads(layer))
    wanted = sum(precision in _reads(layer) for layer in multiplying)
    if wanted / len(multiplying) < SHARE_MIN:
        raise ModelError(
            f"Cannot use the engine as {precision}",
            found=f"{wanted} of {len(multiplying)} layers with weights read {precision}: {dict(reads)}",
            rule="the precision that was asked for must be in the engine",
            remedy="Look at the builder's log: the graph's types were not kept.",
        )
    return {"layers": len(layers), "multiplying": len(multiplying), "proved": wanted, "reads": dict(reads)}


def _multiplies(layer: dict[str, Any]) -> bool:
    """Whether a layer is a convolution or a matrix product: by its parameters, or by the kernel that was chosen."""
    if layer.get("ParameterType") in ENGINE_PARAMETER_TYPES:
        return True
    words = f"{layer.get('LayerType', '')} {layer.get('TacticName', '')}".lower()
    return any(word in words for word in ENGINE_KERNEL_WORDS)


def _reads(layer: dict[str, Any]) -> set[str]:
    """Types of a layer's inputs and weights."""
    texts = [str(one.get("Format/Datatype", one.get("Datatype", ""))) for one in layer.get("Inputs", [])]
    weights = layer.get("Weights")
    if isinstance(weights, dict):
        texts.append(str(weights.get("Type", "")))
    return {_engine_type(text) for text in texts if text}


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


def _zero_points(model: onnx.ModelProto, tensors: dict[str, onnx.TensorProto], folder: Path) -> list[np.ndarray]:
    names = {
        node.input[2]
        for node in model.graph.node
        if node.op_type in ("QuantizeLinear", "DequantizeLinear") and len(node.input) > 2
    }
    found = [numpy_helper.to_array(tensors[name], base_dir=str(folder)) for name in names if name in tensors]
    return [value for value in found if value.dtype != np.int32]  # int32: the bias, which has no zero point


def _engine_type(text: str) -> str:
    for precision, names in ENGINE_TYPE_OF.items():
        if any(name in text for name in names):
            return precision
    return text or "unknown"
