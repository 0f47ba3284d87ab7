"""What cannot be exported is refused with the reason, the part of the module and the line; no file is left."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from cluster.bundle.signature import TensorSpec
from cluster.errors import ModelError
from trainers.export.onnx import export_onnx
from trainers.export.reasons import export_error

INPUTS = (TensorSpec(name="x", datatype="FP32", shape=(-1, 4)),)
EXAMPLE = {"x": np.random.default_rng(0).random((4, 4), dtype=np.float32)}


class BranchesOnRows(nn.Module):
    """Exported without a word by torch: as the branch that the example's four rows took."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if x.shape[0] > 3:
            return x[:, :2]
        return x[:, 2:]


class FixesRows(nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x.reshape(4, 4)[:, :2]


class BranchesOnValues(nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x[:, :2] if x.sum() > 0 else x[:, 2:]


class Odd(nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.igamma(x.abs() + 1, x.abs())  # line with the operator


class HasOdd(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.Linear(4, 4), Odd())

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.body(x)


class AnyRows(nn.Module):
    """Uses the number of rows, but for nothing that depends on it."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x.reshape(x.shape[0], 2, 2).sum(1)


@pytest.mark.parametrize(
    ("module", "told"),
    [
        (BranchesOnRows(), "traced for 4 rows and more only"),
        (FixesRows(), "fixes axis 0 of 'x' to 4 rows"),
        (BranchesOnValues(), r"depends on the number of rows or on values.*test_reasons\.py:\d+ in forward"),
    ],
)
def test_a_forward_that_holds_for_some_batches_only_is_refused_with_the_reason(
    tmp_path: Path, module: nn.Module, told: str
) -> None:
    with pytest.raises(ModelError, match=told) as caught:
        export_onnx(module, INPUTS, EXAMPLE, tmp_path / "m.onnx", opset=20)
    assert "the batch axis must stay dynamic" in str(caught.value)
    assert caught.value.exit_code == 2
    assert list(tmp_path.iterdir()) == []


def test_a_forward_that_takes_any_batch_is_not_refused(tmp_path: Path) -> None:
    assert export_onnx(AnyRows(), INPUTS, EXAMPLE, tmp_path / "m.onnx", opset=20).opset == 20


def test_an_operator_without_an_onnx_form_names_the_part_and_the_line(tmp_path: Path) -> None:
    source = Path(__file__).read_text(encoding="utf-8").splitlines()
    line = 1 + next(i for i, text in enumerate(source) if "# line with the operator" in text)
    with pytest.raises(ModelError) as caught:
        export_onnx(HasOdd(), INPUTS, EXAMPLE, tmp_path / "m.onnx", opset=20)
    told = str(caught.value)
    assert "igamma has no ONNX form (part body.1, Odd; " in told
    assert f"test_reasons.py:{line} in forward: `return torch.igamma" in told
    assert list(tmp_path.iterdir()) == []


def test_an_opset_that_the_exporter_would_replace_in_silence_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=r"opset 17 was asked for.*18 and upwards"):
        export_onnx(AnyRows(), INPUTS, EXAMPLE, tmp_path / "m.onnx", opset=17)


def test_an_operator_is_named_also_where_the_module_cannot_be_traced_again() -> None:
    cause = torch.onnx.OnnxExporterError("No ONNX function found for <OpOverload(op='aten.odd', overload='default')>.")

    def retrace() -> list[object]:
        raise RuntimeError("no")

    assert str(export_error(cause, AnyRows(), retrace)).startswith(
        "Cannot export AnyRows to ONNX: operator aten.odd has no ONNX form; every operator"
    )
