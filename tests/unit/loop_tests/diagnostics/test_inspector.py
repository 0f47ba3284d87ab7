"""What an inspection records, and where a value that is not finite came from."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

import trainers.loop.data.loader as loader
from cluster.errors import DivergedError
from cluster.telemetry.events import Diagnostics, ListSink, TrainStep
from tests.unit.loop_tests.rig import CLASSES, FEATURES, request_for, start, write_data
from trainers.loop import fit
from trainers.loop.data.sampler import Window
from trainers.loop.diagnostics.inspector import Inspector, _note_activation, locate_nonfinite
from trainers.loop.diagnostics.utilization import listed_peak, measured_peak, peak_flops
from trainers.loop.step import update

RIG = "tests.unit.loop_tests.rig"
HERE = "tests.unit.loop_tests.diagnostics.test_inspector"
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
    weights = []
    for index in range(3):
        before = state.model.second.weight.detach().clone()  # type: ignore[union-attr, operator]
        window = Window(0, index, WINDOW.rows, 0, 16)
        with inspector.inspect(window):
            update(job, state, window)
        after = state.model.second.weight.detach()  # type: ignore[union-attr]
        changed = float((after - before).norm() / before.norm())  # type: ignore[operator]
        weights.append(after.clone())  # type: ignore[operator]
    inspections = [event for event in job.sink.events if isinstance(event, Diagnostics)]  # type: ignore[attr-defined]
    assert [event.update for event in inspections] == [0, 2]
    assert inspections[1].values["act"]["dead_share"] == 0.5
    assert inspections[1].values["second.weight"]["update_ratio"] == pytest.approx(changed, rel=1e-5)
    assert "change_since_last_look" not in inspections[0].values["second.weight"]
    moved = float((weights[2] - weights[0]).norm() / before.norm())  # type: ignore[operator]
    assert inspections[1].values["second.weight"]["change_since_last_look"] == pytest.approx(moved, rel=1e-5)
    assert moved > changed, "two updates, not one"
    gradient = state.model.second.weight.grad  # type: ignore[union-attr]
    assert inspections[1].values["second.weight"]["gradient_norm"] == pytest.approx(float(gradient.norm()), rel=1e-5)  # type: ignore[union-attr, operator]
    assert not state.model.act._forward_hooks, "hooks are gone between inspections"  # type: ignore[union-attr]


@pytest.mark.parametrize("deferred", [False, True], ids=["host", "device"])
def test_norms_of_layers_are_those_before_clipping_and_after(tmp_path: Path, deferred: bool) -> None:
    """Squared and added up they are the gradient's norm as it came, and the clip's limit."""
    request = request_for(
        write_data(tmp_path, 16), batch=16, micro=16, factory=f"{HERE}:build_half", diagnostics_every_updates=1,
        clip_norm=0.1,
    )  # fmt: skip
    job, state = start(request)
    state.deferred = deferred
    with Inspector(job, state).inspect(WINDOW):
        report = update(job, state, WINDOW)
    (event,) = [event for event in job.sink.events if isinstance(event, Diagnostics)]  # type: ignore[attr-defined]
    layers = [values for name, values in event.values.items() if name.endswith(("weight", "bias"))]
    whole = {
        name: sum(values[name] ** 2 for values in layers) ** 0.5 for name in ("gradient_norm", "gradient_norm_clipped")
    }
    assert report.gradient_norm > 0.2
    assert whole["gradient_norm"] == pytest.approx(report.gradient_norm, rel=1e-5)
    assert whole["gradient_norm_clipped"] == pytest.approx(0.1, rel=1e-4)


def test_a_unit_of_a_transformer_is_a_feature_not_a_token(tmp_path: Path) -> None:
    """One feature in four is 0 for all rows and tokens; no token is."""
    values = torch.ones(2, 3, 4)
    values[:, :, 1] = 0.0
    found: dict[str, torch.Tensor] = {}
    _note_activation(found, "act", nn.ReLU(), (), values)
    assert found["act"].tolist()[2] == 0.25
    image = torch.ones(2, 4, 5, 5)
    image[:, 3] = 0.0
    image[0, 0, 0, 0] = torch.inf
    _note_activation(found, "act", nn.ReLU(), (), image)
    assert found["act"].tolist()[2:] == pytest.approx([0.25, 1 / image.numel()], rel=1e-3)


def test_looks_count_flops_and_leave_the_training_byte_for_byte(tmp_path: Path) -> None:
    prepared = write_data(tmp_path, 32, dtype="FP32")
    ends, sinks = [], []
    for every in (1, None):
        request = request_for(
            prepared,
            batch=8,
            micro=3,
            epochs=2,
            factory=f"{RIG}:build_noisy",
            diagnostics_every_updates=every,
            log_every_updates=2,
        )
        sinks.append(ListSink())
        ends.append(fit(request, sink=sinks[-1], device=torch.device("cpu")))
    assert all(torch.equal(ends[0].weights[name], ends[1].weights[name]) for name in ends[0].weights)
    steps = [event for event in sinks[0].events if isinstance(event, TrainStep)]
    for step in steps:
        # forward and both gradients of Linear(8, 16) and Linear(16, 3): the inputs themselves want no gradient
        per_row = 2 * (3 * FEATURES * 16 - FEATURES * 16 + 3 * 16 * CLASSES)
        assert step.extra["flops_per_s"] / step.samples_per_s == pytest.approx(per_row)
        assert 0 < step.extra["mfu"] < 1
        assert step.extra["memory_bytes"] > 1 << 20
    unseen = [event for event in sinks[1].events if isinstance(event, TrainStep)]
    assert unseen
    assert all("mfu" not in step.extra for step in unseen), "what was not counted is not told"


def test_the_peak_of_a_gpu_is_looked_up_by_its_name_and_never_guessed() -> None:
    names = {
        "NVIDIA H100 80GB HBM3": 989e12,
        "NVIDIA H100 PCIe": 756e12,
        "NVIDIA A100-SXM4-80GB": 312e12,
        "NVIDIA L4": 121e12,
        "NVIDIA L40S": 362e12,
        "Tesla T4": 65e12,
        "NVIDIA L40": None,
        "NVIDIA GeForce RTX 5090": None,
    }
    assert {name: listed_peak(name, "bf16") for name in names} == names
    assert listed_peak("NVIDIA A100-SXM4-80GB", "fp32") == 19.5e12
    assert peak_flops(torch.device("meta"), "bf16") is None
    assert measured_peak(torch.float32) > 1e8


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


def test_values_in_the_data_that_are_not_finite_are_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(loader, "IN_MEMORY_BYTES", 0)  # a smaller split is refused at the start
    prepared = write_data(tmp_path, 16, dtype="FP32")
    inputs = np.load(prepared / "train" / "inputs.x.npy")
    inputs[3, 2] = np.nan
    np.save(prepared / "train" / "inputs.x.npy", inputs)
    job, state = start(request_for(prepared, batch=16, micro=16, arguments={"double": False}))
    assert "inputs hold values" in locate_nonfinite(job, state, WINDOW)
