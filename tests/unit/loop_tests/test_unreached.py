"""Parameters that no backward of a window reaches are left out of the step, as torch does where `grad` is None."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional as F

from cluster.telemetry.events import ListSink
from tests.unit.loop_tests.rig import CLASSES, FEATURES, request_for, run_ranks, start, write_data
from trainers.loop import fit
from trainers.loop.data.sampler import epoch_order
from trainers.loop.setup import build_module

CPU = torch.device("cpu")
ROWS, BATCH, EPOCHS = 44, 11, 2
HERE = __name__
RATE = 0.05


class Routed(nn.Module):
    """`rare` is asked for rows whose first feature is large, `never` for none; `always` for all."""

    def __init__(self) -> None:
        super().__init__()
        self.always, self.rare, self.never = (nn.Linear(FEATURES, CLASSES) for _ in range(3))
        self.double()

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        outputs = self.always(inputs)
        chosen = inputs[:, 0] > 2.0
        if chosen.any():
            outputs = outputs + chosen[:, None] * self.rare(inputs)
        return outputs


def build_routed() -> nn.Module:
    return Routed()


def request_of(prepared: Path, optimizer: dict[str, Any], micro: int, workers: int = 1) -> Any:
    return request_for(
        prepared, batch=BATCH, micro=micro, workers=workers, factory=f"{HERE}:build_routed", epochs=EPOCHS,
        optimizer={"learning_rate": RATE, "weight_decay": 0.1, **optimizer}, keep="last",
        schedule={"name": "constant", "warmup": 0.0},
    )  # fmt: skip


def by_torch(request: Any, make: Any) -> tuple[dict[str, torch.Tensor], int]:
    """Weights by torch's own optimizer on whole batches, and in how many updates `rare` had no gradient."""
    job, _ = start(request)
    model, split = build_module(request, job.data), job.data.splits["train"]
    weights, biases = ([p for p in model.parameters() if (p.dim() > 1) is more] for more in (True, False))
    optimizer = make([{"params": weights, "weight_decay": 0.1}, {"params": biases, "weight_decay": 0.0}], lr=RATE)
    without = 0
    for epoch in range(EPOCHS):
        order = epoch_order(request.seed, epoch, ROWS)
        for at in range(0, ROWS, BATCH):
            rows = order[at : at + BATCH]
            loss = F.cross_entropy(
                model(torch.from_numpy(split.inputs["x"][rows])), torch.from_numpy(split.targets[rows])
            )
            optimizer.zero_grad()
            loss.backward()
            without += model.rare.weight.grad is None
            optimizer.step()
    return model.state_dict(), without


MAKERS: dict[str, Any] = {
    "adamw": torch.optim.AdamW,
    "adam": torch.optim.Adam,
    "sgd": lambda groups, lr: torch.optim.SGD(groups, lr=lr, momentum=0.9),
    "adafactor": torch.optim.Adafactor,
}


@pytest.mark.parametrize("name", MAKERS)
@pytest.mark.parametrize("micro", [11, 3])
def test_weights_are_torchs(tmp_path: Path, name: str, micro: int) -> None:
    request = request_of(write_data(tmp_path, ROWS), {"name": name}, micro)
    expected, without = by_torch(request, MAKERS[name])
    assert 0 < without < 8, "the test is about both"
    found = fit(request, sink=ListSink(), device=CPU).weights
    for key, value in expected.items():
        torch.testing.assert_close(found[key], value, rtol=1e-9, atol=1e-12)
    start_of = build_module(request, start(request)[0].data).state_dict()
    assert torch.equal(found["never.weight"], start_of["never.weight"]), "no decay"


def _weights(rank: int, prepared: str) -> dict[str, np.ndarray]:
    found = fit(request_of(Path(prepared), {"name": "adamw"}, 2, 3), sink=ListSink(), device=CPU).weights
    return {name: tensor.numpy() for name, tensor in found.items()}


def test_workers_agree_on_what_one_of_them_has_reached(tmp_path: Path) -> None:
    """A worker of three whose rows do not ask for `rare` steps it all the same where another's do."""
    prepared = write_data(tmp_path / "data", ROWS)
    expected, _ = by_torch(request_of(prepared, {"name": "adamw"}, 11), MAKERS["adamw"])
    for found in run_ranks(3, _weights, tmp_path / "ranks", str(prepared)):
        for key, value in expected.items():
            np.testing.assert_allclose(found[key], value, rtol=1e-9, atol=1e-12)
