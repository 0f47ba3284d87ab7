"""Graph optimization: what was fused is counted, the answers stay, and a quantized graph is never touched."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from onnxruntime.quantization import CalibrationDataReader, QuantFormat, quantize_static
from torch import nn

from cluster.bundle.signature import TensorSpec
from cluster.errors import MissingDependencyError, ModelError
from cluster.spec.export import OptimizeSpec, ParitySpec
from trainers.export.onnx import export_onnx
from trainers.export.optimize import optimize_graph
from trainers.export.parity import check_parity

TOKENS = (TensorSpec(name="tokens", datatype="INT64", shape=(-1, 16)),)
ROWS = {"tokens": np.random.default_rng(0).integers(0, 100, (7, 16))}


class Block(nn.Module):
    """One encoder layer, written as BERT writes it."""

    def __init__(self) -> None:
        super().__init__()
        self.query, self.key, self.value, self.out = (nn.Linear(32, 32) for _ in range(4))
        self.wide, self.narrow = nn.Linear(32, 64), nn.Linear(64, 32)
        self.norm_attention, self.norm_out = nn.LayerNorm(32), nn.LayerNorm(32)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        query, key, value = (self._heads(part(x)) for part in (self.query, self.key, self.value))
        mixed = (query @ key.transpose(2, 3) / 8**0.5).softmax(-1) @ value
        x = self.norm_attention(x + self.out(mixed.permute(0, 2, 1, 3).reshape(x.shape[0], 16, 32)))
        return self.norm_out(x + self.narrow(nn.functional.gelu(self.wide(x))))

    def _heads(self, x: torch.Tensor) -> torch.Tensor:
        return x.reshape(x.shape[0], 16, 4, 8).permute(0, 2, 1, 3)


class Encoder(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.words, self.block, self.head = nn.Embedding(100, 32), Block(), nn.Linear(32, 3)

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        return self.head(self.block(self.words(tokens)).mean(1))


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory) -> tuple[nn.Module, bytes]:
    torch.manual_seed(0)
    module = Encoder().eval()
    path = tmp_path_factory.mktemp("encoder") / "m.onnx"
    export_onnx(module, TOKENS, ROWS, path, opset=20)
    return module, path.read_bytes()


@pytest.fixture
def graph(tmp_path: Path, exported: tuple[nn.Module, bytes]) -> Path:
    path = tmp_path / "model.onnx"
    path.write_bytes(exported[1])
    return path


def test_a_transformers_pattern_is_fused_counted_and_still_right(
    graph: Path, exported: tuple[nn.Module, bytes]
) -> None:
    facts = optimize_graph(graph, OptimizeSpec(transformer=True))["transformer"]
    assert facts["fused"] == {"Attention": 1, "BiasGelu": 1, "SkipLayerNormalization": 2}
    operators = [node.op_type for node in onnx.load(str(graph)).graph.node]
    assert len(operators) == facts["nodes_after"] < facts["nodes_before"]
    assert operators.count("Attention") == 1
    assert check_parity(exported[0], graph, ROWS, ParitySpec())["batch_sizes"] == [1, 2, 7]


def test_a_graph_without_the_pattern_stays_as_it_was_and_nothing_is_claimed(tmp_path: Path) -> None:
    path = tmp_path / "m.onnx"
    inputs = (TensorSpec(name="x", datatype="FP32", shape=(-1, 4)),)
    export_onnx(nn.Linear(4, 2), inputs, {"x": np.ones((2, 4), np.float32)}, path, opset=20)
    before = path.read_bytes()
    assert optimize_graph(path, OptimizeSpec(transformer=True))["transformer"]["fused"] == {}
    assert path.read_bytes() == before
    assert optimize_graph(path, OptimizeSpec()) == {}


def test_onnxslim_keeps_the_batch_dynamic_and_the_answers(graph: Path, exported: tuple[nn.Module, bytes]) -> None:
    pytest.importorskip("onnxslim")
    facts = optimize_graph(graph, OptimizeSpec(onnxslim=True))["onnxslim"]
    assert facts["nodes_after"] <= facts["nodes_before"]
    assert check_parity(exported[0], graph, ROWS, ParitySpec())["logits"]["rows"] == 7


def test_onnxslim_that_is_not_there_names_the_extra(graph: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "onnxslim", None)
    with pytest.raises(MissingDependencyError, match=r"manta-ml\[optimize\]"):
        optimize_graph(graph, OptimizeSpec(onnxslim=True))


class Rows(CalibrationDataReader):
    def __init__(self) -> None:
        self.left = [ROWS]

    def get_next(self) -> dict[str, np.ndarray] | None:
        return self.left.pop() if self.left else None


@pytest.mark.parametrize("step", ["onnxslim", "transformer"])
@pytest.mark.parametrize("form", [QuantFormat.QDQ, QuantFormat.QOperator])
@pytest.mark.filterwarnings("ignore")
def test_nothing_is_optimized_after_qdq_insertion(graph: Path, step: str, form: QuantFormat) -> None:
    target = graph.with_name("q.onnx")
    quantize_static(str(graph), str(target), Rows(), quant_format=form, op_types_to_quantize=["MatMul", "Add"])
    before = target.read_bytes()
    with pytest.raises(ModelError, match="no optimizer runs after Q/DQ insertion"):
        optimize_graph(target, OptimizeSpec.model_validate({step: True}))
    assert target.read_bytes() == before
