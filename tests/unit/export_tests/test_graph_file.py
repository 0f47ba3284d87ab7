"""ONNX files from elsewhere: what no honest file has is refused before anything is allocated."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from cluster.errors import ModelError
from trainers.export.graph_file import check_file, check_untrusted
from trainers.export.precision import prove_graph


def write_graph(path: Path, *, batch: int | str = "batch", opset: int = 20) -> onnx.ModelProto:
    weight = numpy_helper.from_array(np.ones((3, 2), np.float32), "w")
    x = helper.make_tensor_value_info("x", TensorProto.FLOAT, [batch, 3])
    y = helper.make_tensor_value_info("y", TensorProto.FLOAT, [batch, 2])
    graph = helper.make_graph([helper.make_node("MatMul", ["x", "w"], ["y"])], "g", [x], [y], [weight])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=10)
    onnx.save(model, str(path))
    return model


def test_data_outside_the_folder_and_absurd_dimensions_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "m.onnx"
    model = write_graph(path)
    assert check_untrusted(path).graph.node
    model.graph.initializer[0].dims[0] = 1 << 40
    path.write_bytes(model.SerializeToString())
    with pytest.raises(ModelError, match="claims dimensions"):
        check_untrusted(path)
    tensor = model.graph.initializer[0]
    tensor.ClearField("raw_data")
    tensor.data_location = TensorProto.EXTERNAL
    tensor.external_data.add(key="location", value="../../etc/passwd")
    path.write_bytes(model.SerializeToString())
    with pytest.raises(ModelError, match="beside the file"):
        check_untrusted(path)


def test_a_frozen_batch_and_another_opset_are_refused(tmp_path: Path) -> None:
    write_graph(tmp_path / "frozen.onnx", batch=2)
    with pytest.raises(ModelError, match="axis 0 of 'x' is 2"):
        check_file(tmp_path / "frozen.onnx")
    write_graph(tmp_path / "old.onnx", opset=18)
    with pytest.raises(ModelError, match="it has opset 18, asked for was 20"):
        check_file(tmp_path / "old.onnx", opset=20)


@pytest.mark.parametrize("precision", ["fp16", "int8"])
def test_a_float_graph_is_no_proof_of_low_precision(tmp_path: Path, precision: str) -> None:
    write_graph(tmp_path / "m.onnx")
    prove_graph(tmp_path / "m.onnx", "fp32")
    with pytest.raises(ModelError, match=f"Cannot build a {precision} engine"):
        prove_graph(tmp_path / "m.onnx", precision)  # type: ignore[arg-type]
