"""Multiply-accumulates of an ONNX file, as torch counts them."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from torch import nn

from cluster.bundle.signature import TensorSpec
from cluster.spec.model import CnnSpec, MlpSpec
from tests.bundles import linear_graph
from trainers.compress.macs import graph_macs
from trainers.compress.prune.cost import count_macs
from trainers.export.onnx import export_onnx
from trainers.models import build_model

IMAGE = (TensorSpec(name="image", datatype="FP32", shape=(-1, 3, 12, 12)),)
TABLE = (TensorSpec(name="x", datatype="FP32", shape=(-1, 20)),)


def modules() -> dict[str, tuple[nn.Module, tuple[TensorSpec, ...]]]:
    return {
        "cnn": (build_model(CnnSpec(family="cnn", width=8), IMAGE, 5), IMAGE),
        "mlp": (build_model(MlpSpec(family="mlp", hidden=(32, 16)), TABLE, 3), TABLE),
    }


@pytest.mark.parametrize("name", ["cnn", "mlp"])
def test_the_file_holds_the_arithmetic_that_torch_counts(name: str, tmp_path: Path) -> None:
    module, inputs = modules()[name]
    rows = np.zeros((4, *inputs[0].item_shape), np.float32)
    export_onnx(module, inputs, {inputs[0].name: rows}, tmp_path / "model.onnx", opset=20)
    assert graph_macs(tmp_path / "model.onnx") == count_macs(module, (torch.from_numpy(rows),))


def test_a_shape_that_is_not_known_gives_no_number(tmp_path: Path) -> None:
    model = linear_graph((8,), 3)
    model.graph.input[0].type.tensor_type.shape.dim[1].Clear()
    onnx.save(model, tmp_path / "model.onnx")
    assert graph_macs(tmp_path / "model.onnx") is None
