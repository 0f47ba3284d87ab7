"""Level L2: what TensorRT will be given, read from the ONNX itself: types, zero points, opset, profiles, numerics."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from torch import nn

from cluster.bundle.signature import TensorSpec
from cluster.errors import ModelError
from cluster.spec.serve import TensorRtSpec
from trainers.compress.presets import StaticPreset, StaticRecipe, cpu_preset, tensorrt_preset
from trainers.compress.quantize import convert_fp16, preprocess, quantize_int8_static, quantize_weights_only
from trainers.export.graph_file import check_file, graph_inputs
from trainers.export.node_engine import make_profiles
from trainers.export.onnx import export_onnx
from trainers.export.precision import graph_census, prove_graph
from trainers.export.session import open_session

INPUTS = (TensorSpec(name="x", datatype="FP32", shape=(-1, 3, 8, 8)),)
ROWS = {"x": np.random.default_rng(0).standard_normal((64, 3, 8, 8)).astype(np.float32)}
SQNR_MIN_DB = 20.0  # a tenth of the signal's amplitude; a wrong scale or zero point falls far below
pytestmark = pytest.mark.tensorrt_level("L2")


@pytest.fixture(scope="module")
def float_graph(tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.manual_seed(0)
    net = nn.Sequential(
        nn.Conv2d(3, 16, 3),
        nn.BatchNorm2d(16),
        nn.ReLU(),
        nn.Conv2d(16, 16, 3),
        nn.ReLU(),
        nn.Flatten(),
        nn.Linear(256, 5),
    )
    path = tmp_path_factory.mktemp("float") / "m.onnx"
    export_onnx(net.eval(), INPUTS, {"x": ROWS["x"][:2]}, path, opset=20)
    return path


def quantized(source: Path, folder: Path, preset: StaticPreset) -> Path:
    prepared, target = folder / "prepared.onnx", folder / "int8.onnx"
    preprocess(source, prepared)
    quantize_int8_static(prepared, target, ROWS, StaticRecipe(preset), ranges=folder / "ranges.json")
    return target


def test_the_tensorrt_preset_is_symmetric_int8_on_both_sides_of_every_product(
    float_graph: Path, tmp_path: Path
) -> None:
    path = quantized(float_graph, tmp_path, tensorrt_preset())
    census = prove_graph(path, "int8")
    assert census["quantized_layers"] == census["layers"] == 3
    assert census["zero_points_all_zero"]
    assert census["zero_point_types"] == ["int8"]
    assert check_file(path).opset == 20
    want = open_session(float_graph).run(None, ROWS)[0]
    noise = open_session(path).run(None, ROWS)[0] - want
    assert 10 * np.log10((want**2).mean() / (noise**2).mean()) > SQNR_MIN_DB


def test_the_cpu_preset_is_refused_for_tensorrt_with_the_reason(float_graph: Path, tmp_path: Path) -> None:
    path = quantized(float_graph, tmp_path, cpu_preset(vnni=True))
    with pytest.raises(ModelError, match="symmetric INT8 only"):
        prove_graph(path, "int8")


def test_int8_weights_alone_are_no_int8(float_graph: Path, tmp_path: Path) -> None:
    quantize_weights_only(float_graph, tmp_path / "w.onnx")
    assert graph_census(tmp_path / "w.onnx")["dequantize_nodes"] == 3
    with pytest.raises(ModelError, match="0 of 3 layers have Q/DQ pairs on input and weights"):
        prove_graph(tmp_path / "w.onnx", "int8")


def test_fp16_is_in_the_weights_and_inputs_and_outputs_stay_float(float_graph: Path, tmp_path: Path) -> None:
    convert_fp16(float_graph, tmp_path / "half.onnx")
    assert prove_graph(tmp_path / "half.onnx", "fp16")["weights"] == {"fp16": 3}
    with pytest.raises(ModelError, match="asking for it changes nothing"):
        prove_graph(float_graph, "fp16")
    with pytest.raises(ModelError, match="Cannot build a fp32 engine"):
        prove_graph(tmp_path / "half.onnx", "fp32")
    model = onnx.load(str(tmp_path / "half.onnx"))
    assert [one.type.tensor_type.elem_type for one in (*graph_inputs(model), *model.graph.output)] == [1, 1]


def test_profiles_cover_every_dynamic_dimension_of_the_file(float_graph: Path) -> None:
    (profile,) = make_profiles(INPUTS, TensorRtSpec(), max_rows=32)
    for value in graph_inputs(onnx.load(str(float_graph))):
        least, typical, most = profile.shapes[value.name]
        for axis, dim in enumerate(value.type.tensor_type.shape.dim):
            fixed = dim.dim_value
            assert (least[axis], typical[axis], most[axis]) == ((fixed,) * 3 if fixed else (1, 32, 32))
