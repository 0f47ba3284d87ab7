"""Parity with torch: every output, at batch 1, 2 and an odd size, on the file itself, within stated tolerances."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from onnx import numpy_helper
from torch import nn

from cluster.bundle.signature import TensorSpec
from cluster.errors import ModelError
from cluster.spec.export import ParitySpec
from trainers.export.graph_file import graph_inputs
from trainers.export.onnx import export_onnx
from trainers.export.parity import check_parity

INPUTS = (
    TensorSpec(name="image", datatype="FP32", shape=(-1, 1, 6, 6)),
    TensorSpec(name="extra", datatype="FP32", shape=(-1, 3)),
)
RNG = np.random.default_rng(0)
ROWS = {"image": RNG.random((7, 1, 6, 6), np.float32), "extra": RNG.random((7, 3), np.float32)}


class TwoOutputs(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv, self.head, self.aside = nn.Conv2d(1, 4, 3), nn.Linear(67, 3), nn.Linear(3, 2)

    def forward(self, image: torch.Tensor, extra: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        return self.head(torch.cat([self.conv(image).relu().flatten(1), extra], 1)), self.aside(extra)


@pytest.fixture(scope="module")
def module() -> nn.Module:
    torch.manual_seed(0)
    return TwoOutputs().eval()


@pytest.fixture(scope="module")
def exported(module: nn.Module, tmp_path_factory: pytest.TempPathFactory) -> bytes:
    path = tmp_path_factory.mktemp("parity") / "m.onnx"
    export_onnx(module, INPUTS, ROWS, path, opset=20, outputs=("logits", "aside"))
    assert [one.name for one in path.parent.iterdir()] == ["m.onnx"]  # small: no weights beside it
    return path.read_bytes()


@pytest.fixture
def graph(tmp_path: Path, exported: bytes) -> Path:
    path = tmp_path / "m.onnx"
    path.write_bytes(exported)
    return path


def change(path: Path, index: int, by: float) -> None:
    """Add to every weight of the initializer at `index`, in graph order of names."""
    model = onnx.load(str(path))
    tensor = sorted(model.graph.initializer, key=lambda one: one.name)[index]
    tensor.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(tensor) + np.float32(by), tensor.name))
    onnx.save(model, str(path))


def test_parity_is_told_for_each_output_with_its_tolerances(module: nn.Module, graph: Path) -> None:
    facts = check_parity(module, graph, ROWS, ParitySpec(absolute=1e-5, relative=1e-4))
    assert facts["batch_sizes"] == [1, 2, 7]
    assert facts["logits"]["rows"] == facts["aside"]["rows"] == 7
    assert (facts["absolute"], facts["relative"]) == (1e-5, 1e-4)
    assert max(facts["logits"]["max_abs_diff"], facts["aside"]["max_abs_diff"]) < 1e-5


@pytest.mark.parametrize(("weights", "output"), [("aside.weight", "aside"), ("head.weight", "logits")])
def test_a_changed_weight_is_found_in_the_output_that_it_reaches(
    module: nn.Module, graph: Path, weights: str, output: str
) -> None:
    names = sorted(tensor.name for tensor in onnx.load(str(graph)).graph.initializer)
    change(graph, names.index(weights), by=0.01)
    with pytest.raises(ModelError, match=rf"output '{output}' at batch size 1.*differs from torch by up to"):
        check_parity(module, graph, ROWS, ParitySpec())


def test_a_nan_is_refused_whatever_the_tolerance(module: nn.Module, graph: Path) -> None:
    change(graph, 0, by=float("nan"))
    with pytest.raises(ModelError, match="holds NaN or infinity"):
        check_parity(module, graph, ROWS, ParitySpec(absolute=1e9, relative=1e9))


def test_the_batch_axis_is_a_name_on_every_input_and_output_and_nothing_else_is(graph: Path) -> None:
    model = onnx.load(str(graph))
    for value in (*graph_inputs(model), *model.graph.output):
        dims = value.type.tensor_type.shape.dim
        assert dims[0].dim_param == "batch"
        assert all(dim.dim_value > 0 for dim in dims[1:])


def test_a_free_axis_beside_the_batch_is_named_after_its_input(tmp_path: Path) -> None:
    class Mean(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return x.mean(1)

    inputs = (TensorSpec(name="x", datatype="FP32", shape=(-1, -1, 3)),)
    export_onnx(Mean(), inputs, {"x": np.ones((2, 5, 3), np.float32)}, tmp_path / "m.onnx", opset=20)
    (value,) = onnx.load(str(tmp_path / "m.onnx")).graph.input
    assert [dim.dim_param or dim.dim_value for dim in value.type.tensor_type.shape.dim] == ["batch", "x_1", 3]
    rows = {"x": np.random.default_rng(0).random((7, 9, 3), np.float32)}
    assert check_parity(Mean(), tmp_path / "m.onnx", rows, ParitySpec())["logits"]["rows"] == 7
