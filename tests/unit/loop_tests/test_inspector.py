"""What a look sees, and where a value that is not finite came from."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from cluster.errors import DivergedError
from cluster.telemetry.events import Diagnostics, ListSink
from tests.unit.loop_tests.rig import CLASSES, FEATURES, request_for, start, write_data
from trainers.loop import fit
from trainers.loop.inspector import Inspector, locate_nonfinite
from trainers.loop.sampler import Window
from trainers.loop.step import update

HERE = "tests.unit.loop_tests.test_inspector"
WINDOW = Window(0, 0, np.arange(16), 0, 16)


class Half(nn.Module):
    """Half of the hidden units are dead; `explode` makes the second layer's output infinite."""

    def __init__(self, explode: bool = False) -> None:
        super().__init__()
        self.first, self.act, self.second = nn.Linear(FEATURES, 8), nn.ReLU(), nn.Linear(8, CLASSES)
        with torch.no_grad():
            self.first.bias[:4] = -100.0
            if explode:
                self.second.weight.fill_(3e38)

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        return self.second(self.act(self.first(inputs.float())))


def build_half(explode: bool = False) -> nn.Module:
    return Half(explode)


def test_a_look_sees_gradients_updates_and_dead_units(tmp_path: Path) -> None:
    request = request_for(
        write_data(tmp_path, 16), batch=16, micro=16, factory=f"{HERE}:build_half", diagnostics_every_updates=2
    )
    job, state = start(request)
    inspector, changed = Inspector(job, state), 0.0
    for index in range(3):
        before = state.model.second.weight.detach().clone()  # type: ignore[union-attr, operator]
        with inspector.look():
            update(job, state, Window(0, index, WINDOW.rows, 0, 16))
        after = state.model.second.weight.detach()  # type: ignore[union-attr]
        changed = float((after - before).norm() / before.norm())  # type: ignore[operator]
    looks = [event for event in job.sink.events if isinstance(event, Diagnostics)]  # type: ignore[attr-defined]
    assert [look.update for look in looks] == [0, 2]
    assert looks[1].values["act"]["dead_share"] == 0.5
    assert looks[1].values["second.weight"]["update_ratio"] == pytest.approx(changed, rel=1e-5)
    gradient = state.model.second.weight.grad  # type: ignore[union-attr]
    assert looks[1].values["second.weight"]["gradient_norm"] == pytest.approx(float(gradient.norm()), rel=1e-5)  # type: ignore[union-attr, operator]
    assert not state.model.act._forward_hooks, "hooks are gone between looks"  # type: ignore[union-attr]


def test_off_means_off(tmp_path: Path) -> None:
    request = request_for(write_data(tmp_path, 16), batch=8, micro=8, epochs=2, diagnostics_every_updates=None)
    sink = ListSink()
    fit(request, sink=sink, device=torch.device("cpu"))
    assert not [event for event in sink.events if isinstance(event, Diagnostics)]


def test_the_layer_that_made_infinity_is_named(tmp_path: Path) -> None:
    request = request_for(
        write_data(tmp_path, 16, dtype="FP32"),
        batch=4,
        micro=4,
        factory=f"{HERE}:build_half",
        arguments={"explode": True},
        faults={"nonfinite_updates": 1, "rollbacks": 0},
    )
    with pytest.raises(DivergedError, match="the output of layer second is the first that is not finite"):
        fit(request, sink=ListSink(), device=torch.device("cpu"))


def test_values_in_the_data_that_are_not_finite_are_named(tmp_path: Path) -> None:
    prepared = write_data(tmp_path, 16, dtype="FP32")
    inputs = np.load(prepared / "train" / "inputs.x.npy")
    inputs[3, 2] = np.nan
    np.save(prepared / "train" / "inputs.x.npy", inputs)
    job, state = start(request_for(prepared, batch=16, micro=16, arguments={"double": False}))
    assert "inputs hold values" in locate_nonfinite(job, state, WINDOW)
