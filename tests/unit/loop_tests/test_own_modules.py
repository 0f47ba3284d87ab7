"""What people's own modules hold: complex and constant buffers, mixed datatypes, frozen and unused parameters."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from cluster.errors import ModelError
from cluster.telemetry.events import ListSink, Message
from tests.unit.loop_tests.rig import CLASSES, FEATURES, request_for, run_ranks, write_data
from trainers.loop import fit

CPU = torch.device("cpu")
THIRDS = [0.1, 1 / 3, -float("inf"), 2e-7]


class Own(nn.Module):
    """Linear, with what `kind` adds to it."""

    def __init__(self, kind: str) -> None:
        super().__init__()
        self.net, self.spare = nn.Linear(FEATURES, CLASSES), nn.Linear(FEATURES, CLASSES)
        if kind != "unused":
            self.spare.requires_grad_(False)
        if kind == "buffers":
            self.register_buffer("phases", torch.tensor([1 + 2j, 0.1 - 0.3j], dtype=torch.complex64))
            self.register_buffer("thirds", torch.tensor(THIRDS))
            self.register_buffer("mask", torch.tensor([True, False]))
        elif kind == "mixed":
            self.spare.double().requires_grad_(True)
        elif kind == "complex":
            self.spare = nn.Linear(FEATURES, CLASSES, dtype=torch.complex64)
        elif kind == "frozen":
            self.net.requires_grad_(False)
        elif kind == "wide":
            self.register_buffer("phases", torch.ones(2, dtype=torch.complex128))

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        return self.net(inputs.float())


def build_own(kind: str) -> nn.Module:
    return Own(kind)


def request_of(prepared: Path, kind: str, **more: Any) -> Any:
    return request_for(
        prepared, batch=12, micro=4, factory=f"{__name__}:build_own", arguments={"kind": kind}, epochs=2, **more
    )


def _buffers(rank: int, prepared: str, folder: str) -> dict[str, Any]:
    """After two epochs with three workers, and after one more from the checkpoint with as many."""
    checkpoints = Path(folder)
    fit(request_of(Path(prepared), "buffers", workers=3, checkpoints=checkpoints), sink=ListSink(), device=CPU)
    request = request_of(Path(prepared), "buffers", workers=3, checkpoints=checkpoints)
    longer = request.train.model_copy(update={"epochs": 3})
    result = fit(request.__class__(**{**vars(request), "train": longer}), sink=ListSink(), device=CPU)
    return {name: result.weights[name].tolist() for name in ("phases", "thirds", "mask")}


def test_buffers_of_any_kind_on_which_workers_agree_keep_their_bytes(tmp_path: Path) -> None:
    prepared = str(write_data(tmp_path / "data", 36, dtype="FP32"))
    own = Own("buffers")
    expected = {name: getattr(own, name).tolist() for name in ("phases", "thirds", "mask")}
    for found in run_ranks(3, _buffers, tmp_path / "ranks", prepared, str(tmp_path / "checkpoints")):
        assert found == expected


@pytest.mark.parametrize(
    ("kind", "words"),
    [
        ("frozen", "none of its parameters requires a gradient"),
        ("mixed", r"float32 \(net.bias\), float64 \(spare.bias\)"),
        ("complex", "complex64"),
        ("wide", "phases is complex128"),
    ],
)
def test_what_cannot_be_trained_is_one_sentence(tmp_path: Path, kind: str, words: str) -> None:
    with pytest.raises(ModelError, match=words):
        fit(request_of(write_data(tmp_path, 24, dtype="FP32"), kind), sink=ListSink(), device=CPU)


@pytest.mark.parametrize("kind", ["unused", "plain"])
def test_parameters_without_a_gradient_are_said_once(tmp_path: Path, kind: str) -> None:
    sink = ListSink()
    fit(request_of(write_data(tmp_path, 24, dtype="FP32"), kind, diagnostics_every_updates=1), sink=sink, device=CPU)
    said = [event.text for event in sink.events if isinstance(event, Message) and "no gradient" in event.text]
    assert len(said) == (1 if kind == "unused" else 0)
    assert all("spare.weight, spare.bias" in text and "without weight decay" in text for text in said)
