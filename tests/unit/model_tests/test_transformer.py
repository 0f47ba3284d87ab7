"""The token family: padding is never seen, it learns what word counts cannot, and its ONNX file says the same."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from cluster.bundle.signature import TensorSpec
from cluster.errors import ModelError, SpecError
from cluster.spec import parse_spec
from cluster.spec.export import ParitySpec
from cluster.spec.model import TransformerSpec
from cluster.spec.resolve import DataFacts, HostFacts, ResolvedRun, resolve
from trainers.models import build_model
from trainers.models.transformer import Transformer

LENGTH, VOCABULARY = 10, 30
IDS = (TensorSpec(name="text_ids", datatype="INT64", shape=(-1, LENGTH)),)
SPEC = TransformerSpec(family="transformer", width=16, heads=2, layers=1, dropout=0.0, vocabulary=VOCABULARY)
HOST = HostFacts(cpu_cores=2, memory_bytes=1 << 30)
FACTS = DataFacts(
    task="classification", layout="table", num_rows=99, num_rows_train=64, num_classes=2, source_digest="0"
)


def model(spec: TransformerSpec = SPEC, inputs: tuple[TensorSpec, ...] = IDS) -> Transformer:
    torch.manual_seed(0)
    built = build_model(spec, inputs, 2)
    assert isinstance(built, Transformer)
    return built


def test_what_stands_in_the_padding_changes_nothing() -> None:
    """With two lengths of padding of the same text, and with other embeddings of the padding token."""
    network = model().eval()
    ids = torch.tensor([[5, 6, 7, 0, 0, 0, 0, 0, 0, 0]])
    before = network(ids)
    with torch.no_grad():
        network.texts[0].tokens.weight[0] = 100.0  # type: ignore[union-attr, index]
        network.texts[0].positions[3:] = -50.0  # type: ignore[union-attr, index, operator]
    torch.testing.assert_close(network(ids), before)
    assert not torch.allclose(network(torch.tensor([[5, 6, 7, 8, 0, 0, 0, 0, 0, 0]])), before)


def test_a_text_without_a_token_is_finite_and_trains() -> None:
    network = model()
    outputs = network(torch.zeros(3, LENGTH, dtype=torch.int64))
    assert torch.isfinite(outputs).all()
    outputs.sum().backward()
    assert all(torch.isfinite(p.grad).all() for p in network.parameters() if p.grad is not None)


def test_the_order_of_words_counts() -> None:
    network = model().eval()
    forth, back = torch.tensor([[5, 6, 7, 8] + [0] * 6]), torch.tensor([[8, 7, 6, 5] + [0] * 6])
    assert not torch.allclose(network(forth), network(back))


def order_task(rows: int, seed: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Is token 5 before token 6? Bags of words see no difference."""
    rng = np.random.default_rng(seed)
    ids = rng.integers(7, VOCABULARY, (rows, LENGTH))
    lengths = rng.integers(4, LENGTH + 1, rows)
    targets = rng.integers(0, 2, rows)
    for row in range(rows):
        places = np.sort(rng.choice(lengths[row], 2, replace=False))
        ids[row, places] = (5, 6) if targets[row] else (6, 5)
        ids[row, lengths[row] :] = 0
    return torch.from_numpy(ids), torch.from_numpy(targets)


def test_it_learns_an_order_and_its_onnx_file_agrees_with_torch(tmp_path: Path) -> None:
    from trainers.export.onnx import export_onnx
    from trainers.export.parity import check_parity

    network, (ids, targets) = model(), order_task(512, 1)
    optimizer = torch.optim.AdamW(network.parameters(), lr=1e-2)
    for _ in range(60):
        optimizer.zero_grad()
        torch.nn.functional.cross_entropy(network(ids), targets).backward()
        optimizer.step()
    network.eval()
    test_ids, test_targets = order_task(256, 2)
    with torch.no_grad():
        assert float((network(test_ids).argmax(1) == test_targets).float().mean()) > 0.9
    rows = {"text_ids": test_ids[:7].numpy().copy()}
    rows["text_ids"][3] = 0  # a text without a token
    facts = export_onnx(network, IDS, rows, tmp_path / "model.onnx", opset=18)
    assert facts.num_parameters > 0
    parity: dict[str, Any] = check_parity(network, tmp_path / "model.onnx", rows, ParitySpec())
    assert parity["batch_sizes"] == [1, 2, 7]


def resolved(more: str) -> ResolvedRun:
    data = "data:\n  source: {kind: csv, path: x.csv}\n  encode: {text: token_ids, vocabulary: 500}\n"
    return resolve(parse_spec(f"version: 1\n{data}{more}"), name="r", host=HOST, data=FACTS)


def test_auto_takes_it_for_token_ids_with_the_datas_vocabulary() -> None:
    run = resolved("")
    assert run.spec.model.family == "transformer"
    assert run.spec.model.vocabulary == 500
    assert {reason.path for reason in run.reasons} >= {"model.family", "model.vocabulary"}
    chosen = resolved("model: {family: transformer, vocabulary: 77}").spec.model
    assert isinstance(chosen, TransformerSpec)
    assert chosen.vocabulary == 77


def test_heads_must_divide_the_width() -> None:
    with pytest.raises(SpecError, match="width 10 is no multiple of heads 4"):
        resolved("model: {family: transformer, width: 10}")


@pytest.mark.parametrize(
    "inputs",
    [
        (TensorSpec(name="x", datatype="FP32", shape=(-1, 5)),),
        (TensorSpec(name="t", datatype="BYTES", shape=(-1, 1)),),
        (*IDS, TensorSpec(name="x", datatype="FP32", shape=(-1, -1))),
    ],
)
def test_inputs_without_token_ids_are_refused(inputs: tuple[TensorSpec, ...]) -> None:
    with pytest.raises(ModelError, match="takes token ids"):
        build_model(SPEC, inputs, 2)
