"""ONNX files from elsewhere: what no honest file has is refused before anything is allocated."""

from __future__ import annotations

import resource
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from cluster.errors import ModelError
from trainers.export.graph_file import check_file, check_untrusted, graph_digest, graph_facts
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


def nested_graph(path: Path, location: str) -> None:
    """External data of a constant inside an If's branch: no list of initializers names it."""
    weight = numpy_helper.from_array(np.ones((3, 2), np.float32), "w")
    weight.ClearField("raw_data")
    weight.data_location = TensorProto.EXTERNAL
    weight.external_data.add(key="location", value=location)
    y = helper.make_tensor_value_info("y", TensorProto.FLOAT, None)
    branch = helper.make_graph([helper.make_node("Constant", [], ["y"], value=weight)], "branch", [], [y])
    x = helper.make_tensor_value_info("x", TensorProto.BOOL, [])
    node = helper.make_node("If", ["x"], ["y"], then_branch=branch, else_branch=branch)
    model = helper.make_model(helper.make_graph([node], "g", [x], [y]), ir_version=10)
    path.write_bytes(model.SerializeToString())


def test_external_data_inside_a_branch_is_held_to_the_same_rules(tmp_path: Path) -> None:
    path = tmp_path / "m.onnx"
    nested_graph(path, "../secret.bin")
    with pytest.raises(ModelError, match="beside the file"):
        check_untrusted(path)
    (tmp_path / "secret.bin").write_bytes(bytes(24))
    (tmp_path / "link.bin").symlink_to(tmp_path / "secret.bin")
    nested_graph(path, "link.bin")
    with pytest.raises(ModelError, match="missing or a link"):
        check_untrusted(path)
    nested_graph(path, "secret.bin")
    assert check_untrusted(path).graph.node
    (tmp_path / "secret.bin").write_bytes(b"1")
    with pytest.raises(ModelError, match="claims dimensions"):
        check_untrusted(path)


MILLION = 1 << 20
ABSURD = {
    "ConstantOfShape": (["shape"], {}, [MILLION, MILLION]),
    "Expand": (["x", "shape"], {}, [MILLION, MILLION]),
    "Tile": (["x", "shape"], {}, [MILLION, MILLION]),
    "OneHot": (["x", "shape", "x"], {}, [1 << 40]),
    "Pad": (["x", "shape"], {}, [0, 0, 0, 1 << 40]),
    "Resize": (["x", "", "", "shape"], {}, [MILLION, MILLION]),
    "RandomNormal": ([], {"shape": [MILLION, MILLION]}, [0]),
    "Range": (["zero", "shape", "one"], {}, [1 << 40]),
}


def making_graph(path: Path, operator: str, kind: str) -> None:
    """A graph whose size stands in an initializer, a Constant node, a file beside it, or inside a branch."""
    names, attributes, sizes = ABSURD[operator]
    shape = numpy_helper.from_array(np.array(sizes if operator != "Range" else sizes[0], np.int64), "shape")
    zero, one = (numpy_helper.from_array(np.array(value, np.int64), name) for name, value in (("zero", 0), ("one", 1)))
    node = helper.make_node(operator, names, ["y"], **attributes)
    constant = helper.make_node("Constant", [], ["shape"], value_ints=sizes)
    if kind == "file":
        (path.parent / "shape.bin").write_bytes(shape.raw_data)
        shape.ClearField("raw_data")
        shape.data_location = TensorProto.EXTERNAL
        shape.external_data.add(key="location", value="shape.bin")
    nodes, initializers = ([constant, node], [zero, one]) if kind == "constant" else ([node], [shape, zero, one])
    y = helper.make_tensor_value_info("y", TensorProto.FLOAT, None)
    x = helper.make_tensor_value_info("x", TensorProto.FLOAT, ["batch", 1])
    if kind == "branch":
        branch = helper.make_graph(nodes, "branch", [], [y], initializers)
        nodes, initializers = [helper.make_node("If", ["b"], ["y"], then_branch=branch, else_branch=branch)], []
    model = helper.make_model(helper.make_graph(nodes, "g", [x], [y], initializers), ir_version=10)
    path.write_bytes(model.SerializeToString())


@pytest.mark.parametrize("kind", ["initializer", "constant", "file", "branch"])
@pytest.mark.parametrize("operator", ABSURD)
def test_a_few_bytes_that_make_terabytes_are_refused(tmp_path: Path, operator: str, kind: str) -> None:
    making_graph(tmp_path / "m.onnx", operator, kind)
    with pytest.raises(ModelError, match=r"makes \[(1048576, 1048576|1099511627776)\]"):
        check_untrusted(tmp_path / "m.onnx")


@pytest.mark.parametrize(
    "place", [{"offset": "-1099511627776"}, {"offset": "far"}, {"length": "-1"}, {"offset": "900"}]
)
def test_external_data_at_no_place_of_its_file_is_refused(tmp_path: Path, place: dict[str, str]) -> None:
    model = write_graph(tmp_path / "m.onnx")
    tensor = model.graph.initializer[0]
    tensor.ClearField("raw_data")
    tensor.data_location = TensorProto.EXTERNAL
    (tmp_path / "w.bin").write_bytes(bytes(24))
    tensor.external_data.add(key="location", value="w.bin")
    (tmp_path / "m.onnx").write_bytes(model.SerializeToString())
    assert check_untrusted(tmp_path / "m.onnx").graph.node
    for key, value in place.items():
        tensor.external_data.add(key=key, value=value)
    (tmp_path / "m.onnx").write_bytes(model.SerializeToString())
    with pytest.raises(ModelError, match="claims dimensions"):
        check_untrusted(tmp_path / "m.onnx")


def test_weights_beside_the_file_are_part_of_its_digest(tmp_path: Path) -> None:
    model = write_graph(tmp_path / "m.onnx")
    tensor = model.graph.initializer[0]
    tensor.ClearField("raw_data")
    tensor.data_location = TensorProto.EXTERNAL
    tensor.external_data.add(key="location", value="w.bin")
    (tmp_path / "m.onnx").write_bytes(model.SerializeToString())
    (tmp_path / "w.bin").write_bytes(bytes(24))
    before = graph_digest(tmp_path / "m.onnx")
    (tmp_path / "w.bin").write_bytes(bytes(23) + b"1")
    assert graph_digest(tmp_path / "m.onnx") != before


def test_a_shape_whose_bytes_do_not_fit_it_is_an_error_of_ours(tmp_path: Path) -> None:
    making_graph(tmp_path / "m.onnx", "Expand", "initializer")
    model = onnx.load(str(tmp_path / "m.onnx"))
    model.graph.initializer[0].raw_data = bytes(12)
    (tmp_path / "m.onnx").write_bytes(model.SerializeToString())
    with pytest.raises(ModelError, match="tensor 'shape' cannot be read"):
        check_untrusted(tmp_path / "m.onnx")


def test_an_input_of_absurd_size_is_refused(tmp_path: Path) -> None:
    model = write_graph(tmp_path / "m.onnx")
    model.graph.input[0].type.tensor_type.shape.dim[1].dim_value = 1 << 40
    (tmp_path / "m.onnx").write_bytes(model.SerializeToString())
    with pytest.raises(ModelError, match="one row of 'x'"):
        check_untrusted(tmp_path / "m.onnx")


def test_a_file_above_the_protobuf_limit_is_read_without_its_weights(tmp_path: Path) -> None:
    """3 GiB of weights as a sparse file: sizes and rules follow from the graph alone."""
    model = write_graph(tmp_path / "m.onnx")
    tensor = model.graph.initializer[0]
    tensor.ClearField("raw_data")
    tensor.data_location = TensorProto.EXTERNAL
    tensor.external_data.add(key="location", value="m.onnx.data")
    tensor.dims[:] = [3, 1 << 28]
    (tmp_path / "m.onnx").write_bytes(model.SerializeToString())
    with (tmp_path / "m.onnx.data").open("wb") as file:
        file.truncate(3 << 30)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    facts = graph_facts(check_untrusted(tmp_path / "m.onnx"), tmp_path / "m.onnx")
    assert facts.size_bytes > 3 << 30
    assert facts.num_parameters == 3 << 28
    assert prove_graph(tmp_path / "m.onnx", "fp32")["weights"] == {"fp32": 1}
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 100 << 10  # KiB
    with (tmp_path / "m.onnx.data").open("wb") as file:
        file.truncate((3 << 30) // 16)
    with pytest.raises(ModelError, match="claims dimensions"):
        check_untrusted(tmp_path / "m.onnx")
