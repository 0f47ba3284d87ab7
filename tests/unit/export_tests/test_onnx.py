"""A module whose forward takes `*inputs` exports with a dynamic batch axis on each of them."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from cluster.bundle.signature import TensorSpec
from trainers.export.onnx import export_onnx


class Joined(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.layer = nn.Linear(width, 2)

    def forward(self, *inputs: torch.Tensor) -> torch.Tensor:
        return self.layer(torch.cat([item.flatten(1) for item in inputs], dim=1))


@pytest.mark.parametrize("shapes", [((-1, 1, 2, 2),), ((-1, 3), (-1, 5))])
def test_forward_with_star_inputs_exports(tmp_path: Path, shapes: tuple[tuple[int, ...], ...]) -> None:
    inputs = tuple(TensorSpec(name=f"x{i}", datatype="FP32", shape=shape) for i, shape in enumerate(shapes))
    example = {item.name: np.zeros((4, *item.shape[1:]), np.float32) for item in inputs}
    width = sum(int(np.prod(item.shape[1:])) for item in inputs)
    facts = export_onnx(Joined(width), inputs, example, tmp_path / "m.onnx", opset=20)
    assert facts.operators["Gemm"] == 1  # export_onnx itself proves the batch axis dynamic
