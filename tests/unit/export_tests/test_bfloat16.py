"""BF16 in the graph: where ONNX has it, proved from the file, with the numbers of the reference evaluator.

ONNX Runtime has no BF16 kernels for CPUs; what runs the graph here is ONNX's own evaluator.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper
from onnx.reference import ReferenceEvaluator
from torch import nn

from cluster.bundle.signature import TensorSpec
from cluster.errors import ModelError
from cluster.spec.compress import CompressSpec
from trainers.export.bfloat16 import convert_bf16, to_bfloat16
from trainers.export.onnx import export_onnx
from trainers.export.precision import prove_graph
from trainers.export.session import open_session

INPUTS = (TensorSpec(name="x", datatype="FP32", shape=(-1, 1, 8, 8)),)
ROWS = {"x": np.random.default_rng(0).random((4, 1, 8, 8), np.float32)}


def export(path: Path, opset: int, *after: nn.Module) -> Path:
    torch.manual_seed(0)
    layers = (nn.Conv2d(1, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.MaxPool2d(2), nn.Flatten(), *after)
    export_onnx(nn.Sequential(*layers), INPUTS, ROWS, path, opset=opset)
    return path


def test_rounding_is_that_of_torch() -> None:
    values = np.random.default_rng(0).standard_normal(10_000).astype(np.float32) * 1e3
    values[:6] = [0.0, -0.0, np.inf, -np.inf, 1.00390625, 3.3895314e38]
    wanted = torch.from_numpy(values).to(torch.bfloat16).view(torch.int16).numpy().view(np.uint16)
    np.testing.assert_array_equal(to_bfloat16(values), wanted)
    assert np.isnan(
        float(np.array(int(to_bfloat16(np.array([np.nan], np.float32))[0]) << 16, np.uint32).view(np.float32))
    )


def test_weights_and_arithmetic_become_bf16_and_inputs_and_outputs_stay(tmp_path: Path) -> None:
    source = export(tmp_path / "m.onnx", 22, nn.Linear(72, 3), nn.Softmax(-1))
    convert_bf16(source, tmp_path / "low.onnx")
    census = prove_graph(tmp_path / "low.onnx", "bf16")
    assert census["weights"] == {"bf16": 2}
    model = onnx.load(str(tmp_path / "low.onnx"))
    assert [node.op_type for node in model.graph.node] == [
        "Cast",
        "Conv",
        "Relu",
        "MaxPool",
        "Reshape",
        "Gemm",
        "Cast",
        "Softmax",
    ]
    assert {value.type.tensor_type.elem_type for value in (*model.graph.input, *model.graph.output)} == {
        TensorProto.FLOAT
    }
    want = open_session(source).run(None, ROWS)[0]
    got = ReferenceEvaluator(str(tmp_path / "low.onnx")).run(None, ROWS)[0]
    assert 0 < np.abs(got - want).max() < 0.01
    assert (tmp_path / "low.onnx").stat().st_size < source.stat().st_size


def test_convolutions_below_opset_22_are_refused_with_the_remedy(tmp_path: Path) -> None:
    source = export(tmp_path / "m.onnx", 20)
    with pytest.raises(ModelError, match=r"opset 20.*Set export\.opset to 22"):
        convert_bf16(source, tmp_path / "low.onnx")
    assert not (tmp_path / "low.onnx").exists()


def test_a_value_that_a_branch_reads_stays_float(tmp_path: Path) -> None:
    """The branch is not converted: what it takes from outside must have the type that it was written for."""
    weight = numpy_helper.from_array(np.eye(2, dtype=np.float32), "w")
    out = helper.make_tensor_value_info("then_out", TensorProto.FLOAT, None)
    branch = helper.make_graph([helper.make_node("Neg", ["y"], ["then_out"])], "then", [], [out])
    nodes = [
        helper.make_node("MatMul", ["x", "w"], ["y"], name="product"),
        helper.make_node("If", ["flag"], ["z"], then_branch=branch, else_branch=branch),
    ]
    x = helper.make_tensor_value_info("x", TensorProto.FLOAT, ["batch", 2])
    flag = helper.make_tensor_value_info("flag", TensorProto.BOOL, [])
    z = helper.make_tensor_value_info("z", TensorProto.FLOAT, ["batch", 2])
    graph = helper.make_graph(nodes, "g", [x, flag], [z], [weight])
    onnx.save(
        helper.make_model(graph, opset_imports=[helper.make_opsetid("", 22)], ir_version=10), str(tmp_path / "m.onnx")
    )
    convert_bf16(tmp_path / "m.onnx", tmp_path / "low.onnx")
    feed = {"x": np.ones((1, 2), np.float32), "flag": np.array(True)}
    np.testing.assert_array_equal(ReferenceEvaluator(str(tmp_path / "low.onnx")).run(None, feed)[0], [[-1.0, -1.0]])


def test_the_recipe_needs_a_gpu() -> None:
    with pytest.raises(ValueError, match=r"bf16 needs target\.device gpu"):
        CompressSpec(recipes=("bf16",))
    assert CompressSpec.model_validate_json('{"recipes": ["bf16"], "target": {"device": "gpu"}}').recipes == ("bf16",)
