"""Graph recipes: an ONNX float graph -> a smaller one. One quantizer (ONNX Runtime's), two presets.

Invariant: the float graph is never changed; a quantized file holds Q/DQ pairs of the requested preset, and no
constant folding runs after they were inserted.

Covered: static QDQ for CPU and TensorRT, weight-only INT8, FP16. Dynamic INT8 is in row_wise.py.
Not covered: SmoothQuant (its dependency is gone upstream), 4-bit weights, FP8.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import onnx
from onnx import helper, numpy_helper
from onnxruntime.quantization import QuantFormat, quantize_static
from onnxruntime.quantization.shape_inference import quant_pre_process

from cluster.temporary import scratch_folder
from trainers.compress.calibrate import quiet_quantizer, write_ranges
from trainers.compress.presets import WEIGHTED, StaticRecipe
from trainers.export.graph_file import unit_nodes

WEIGHT_ONLY_ELEMENTS_MIN = 256  # a smaller tensor saves less than its scales and its node cost


def preprocess(source: Path, target: Path) -> None:
    """Shape inference and basic graph optimization, which the quantizer needs before it inserts Q/DQ pairs."""
    with quiet_quantizer():
        quant_pre_process(str(source), str(target), skip_symbolic_shape=True)


def quantize_int8_static(
    prepared: Path, target: Path, calibration: Mapping[str, np.ndarray], recipe: StaticRecipe, *, ranges: Path
) -> None:
    """Write the INT8 form of a graph that `preprocess` wrote. `ranges` is a cache: made when absent, else read."""
    preset = recipe.preset
    if not ranges.exists():
        write_ranges(prepared, calibration, ranges, recipe)
    with quiet_quantizer(), scratch_folder("quantize") as scratch:
        out = scratch / "out.onnx"
        quantize_static(
            str(prepared),
            str(out),
            quant_format=QuantFormat.QDQ,
            op_types_to_quantize=list(preset.op_types),
            per_channel=preset.per_channel,
            reduce_range=preset.reduce_range,
            activation_type=preset.activation,
            weight_type=preset.weight,
            nodes_to_exclude=[
                *recipe.exclude,
                *thin_convolutions(prepared, preset.thin_channels_max),
                *answering_nodes(prepared),
            ],
            nodes_to_quantize=list(recipe.only),
            calibrate_method=recipe.method,
            extra_options=dict(preset.options),
            calibration_cache_path=ranges,
        )
        target.write_bytes(out.read_bytes())


def quantize_weights_only(source: Path, target: Path) -> None:
    """Weights of Conv, Gemm and MatMul as INT8 with one scale a channel; activations and arithmetic stay float.

    The file shrinks to about a quarter; ONNX Runtime unpacks the weights when it loads, so speed does not change.
    """
    model = onnx.load(str(source))
    tensors = {tensor.name: tensor for tensor in model.graph.initializer}
    done: set[str] = set()
    unpack = []
    for node in model.graph.node:
        if node.op_type not in WEIGHTED or node.input[1] not in tensors or node.input[1] in done:
            continue
        name = node.input[1]
        values = numpy_helper.to_array(tensors[name])
        if values.dtype != np.float32 or values.size < WEIGHT_ONLY_ELEMENTS_MIN:
            continue
        done.add(name)
        unpack.append(_pack_weight(model, tensors[name], values, _channel_axis(node)))
    for i, node in enumerate(unpack):
        model.graph.node.insert(i, node)
    onnx.checker.check_model(model)
    onnx.save(model, str(target))


def convert_fp16(source: Path, target: Path) -> None:
    """Weights and arithmetic in FP16, inputs and outputs in FP32. A GPU format: x86 CPUs gain no speed by it."""
    from onnxruntime.transformers.float16 import convert_float_to_float16

    with quiet_quantizer():
        model = onnx.load(str(source))
        unit = _take_unit(model)  # blocked nodes the converter would join by FP16 values, which end at 65,504
        model = convert_float_to_float16(model, keep_io_types=True)
    if unit is not None:
        model.graph.node.extend(unit.node)
        model.graph.initializer.extend(unit.initializer)
        model.graph.output[0].CopyFrom(unit.output[0])
    onnx.save(model, str(target))


def answering_nodes(prepared: Path) -> list[str]:
    """Names of the nodes that bring a quantity back into its unit, and of the layer that they read: it has one output,
    so INT8 would save nothing, and would end all answers at what the calibration rows reach."""
    model = onnx.load(str(prepared), load_external_data=False)
    unit = set(unit_nodes(model))
    read = {name for node in model.graph.node if node.name in unit for name in node.input}
    return [node.name for node in model.graph.node if node.name in unit or read & set(node.output)]


def _take_unit(model: onnx.ModelProto) -> onnx.GraphProto | None:
    """Take out the nodes that bring a quantity back into its unit; the graph then ends with learned values."""
    graph, names = model.graph, set(unit_nodes(model))
    unit = onnx.GraphProto(output=graph.output[:1], node=[node for node in graph.node if node.name in names])
    if not unit.node:
        return None
    made = {name for node in unit.node for name in node.output}
    read = {name for node in unit.node for name in node.input if name} - made
    unit.initializer.extend(tensor for tensor in graph.initializer if tensor.name in read)
    (learned,) = read - {tensor.name for tensor in unit.initializer}
    types = [value for value in graph.value_info if value.name in made]
    for kept, taken in ((graph.node, unit.node), (graph.initializer, unit.initializer), (graph.value_info, types)):
        for item in taken:
            kept.remove(item)
    graph.output[0].name = learned
    return unit


def quantizable_nodes(prepared: Path) -> list[str]:
    """Names of the nodes that carry weights, in graph order: the ones whose exclusion can matter."""
    model = onnx.load(str(prepared), load_external_data=False)
    return [node.name for node in model.graph.node if node.op_type in WEIGHTED]


def thin_convolutions(prepared: Path, channels_max: int) -> list[str]:
    """Names of the convolutions over at most `channels_max` channels, which are not the grouped ones."""
    model = onnx.load(str(prepared), load_external_data=False)
    weights = {tensor.name: tensor.dims for tensor in model.graph.initializer}
    return [
        node.name
        for node in model.graph.node
        if node.op_type == "Conv" and _thin(node, weights.get(node.input[1]), channels_max)
    ]


def _thin(node: onnx.NodeProto, dims: Sequence[int] | None, channels_max: int) -> bool:
    grouped = any(attribute.name == "group" and attribute.i > 1 for attribute in node.attribute)
    return dims is not None and not grouped and dims[1] <= channels_max


def _channel_axis(node: onnx.NodeProto) -> int:
    """Axis of the weight that holds output channels."""
    if node.op_type == "Conv":
        return 0
    transposed = any(a.name == "transB" and a.i for a in node.attribute)
    return 0 if node.op_type == "Gemm" and transposed else -1


def _pack_weight(model: onnx.ModelProto, tensor: onnx.TensorProto, values: np.ndarray, axis: int) -> onnx.NodeProto:
    """Replace a float initializer by INT8 values and scales, and return the node that restores its name."""
    axis %= values.ndim
    others = tuple(i for i in range(values.ndim) if i != axis)
    scale = np.maximum(np.abs(values).max(axis=others) / 127, np.finfo(np.float32).tiny).astype(np.float32)
    shape = [-1 if i == axis else 1 for i in range(values.ndim)]
    packed = np.clip(np.rint(values / scale.reshape(shape)), -127, 127).astype(np.int8)
    name = tensor.name
    model.graph.initializer.remove(tensor)
    model.graph.initializer.append(numpy_helper.from_array(packed, f"{name}_int8"))
    model.graph.initializer.append(numpy_helper.from_array(scale, f"{name}_scale"))
    return helper.make_node(
        "DequantizeLinear", [f"{name}_int8", f"{name}_scale"], [name], name=f"{name}_unpack", axis=axis
    )
