"""`train.deterministic`: the settings of torch, cuDNN and cuBLAS, put back afterwards, and the error that names an
operation without a deterministic form."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from torch import nn

from cluster.errors import ModelError, SpecError
from cluster.spec.train import TrainSpec
from cluster.telemetry.events import ListSink
from tests.unit.loop_tests.rig import CLASSES, FEATURES, request_for, write_data
from trainers.loop import fit
from trainers.loop.parts.deterministic import WORKSPACE_VARIABLE, _check_workspace, deterministic, prepare_process
from trainers.loop.tuner.batch_size_finder import SizeReport

CPU = torch.device("cpu")
HERE = "tests.unit.loop_tests.parts.test_deterministic"
ON, OFF = TrainSpec(deterministic=True), TrainSpec()


class Witness(nn.Module):
    """Writes down what is in force in a training forward."""

    def __init__(self, seen: list[bool]) -> None:
        super().__init__()
        self.net, self.seen = nn.Linear(FEATURES, CLASSES).double(), seen

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        cudnn = torch.backends.cudnn
        self.seen += [torch.are_deterministic_algorithms_enabled(), cudnn.deterministic, not cudnn.benchmark]
        return self.net(inputs)


class Putting(nn.Module):
    """`put_` without accumulation has no deterministic form, on a CPU neither."""

    def __init__(self) -> None:
        super().__init__()
        self.net = nn.Linear(FEATURES, CLASSES).double()

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        outputs = self.net(inputs)
        return outputs + torch.zeros_like(outputs).put_(torch.tensor([0]), outputs.detach().flatten()[:1])


def build_witness(seen: list[bool]) -> nn.Module:
    return Witness(seen)


def build_putting() -> nn.Module:
    return nn.Sequential(Putting())


@pytest.fixture(autouse=True)
def _as_it_was() -> Iterator[None]:
    """Whatever a test does, the next one finds the process as it was."""
    cudnn = torch.backends.cudnn
    before = (torch.are_deterministic_algorithms_enabled(), cudnn.deterministic, cudnn.benchmark)
    yield
    assert (torch.are_deterministic_algorithms_enabled(), cudnn.deterministic, cudnn.benchmark) == before


@pytest.mark.parametrize("wanted", [True, False])
def test_the_settings_hold_in_training_and_no_longer(tmp_path: Path, wanted: bool) -> None:
    seen: list[bool] = []
    request = request_for(
        write_data(tmp_path, 8),
        batch=4,
        micro=4,
        factory=f"{HERE}:build_witness",
        arguments={"seen": seen},
        epochs=1,
        deterministic=wanted,
    )
    fit(request, sink=ListSink(), device=CPU)
    assert set(zip(seen[::3], seen[1::3], strict=True)) == {(wanted, wanted)}
    assert all(seen[2::3])


def test_the_weights_on_a_cpu_are_those_of_a_run_without_it(tmp_path: Path) -> None:
    prepared = write_data(tmp_path, 16)
    ends = [
        fit(request_for(prepared, batch=4, micro=2, epochs=2, deterministic=on), sink=ListSink(), device=CPU).weights
        for on in (True, True, False)
    ]
    assert all(torch.equal(ends[0][name], end[name]) for end in ends[1:] for name in end)


def test_an_operation_without_a_deterministic_form_is_named(tmp_path: Path) -> None:
    prepared = write_data(tmp_path, 8)
    request = request_for(prepared, batch=4, micro=4, factory=f"{HERE}:build_putting", epochs=1, deterministic=True)
    with pytest.raises(ModelError, match=r"'put_' in Putting has no deterministic form on cpu") as caught:
        fit(request, sink=ListSink(), device=CPU)
    assert caught.value.details == {"operation": "put_"}
    assert "train.deterministic: false" in caught.value.remedy
    fit(request_for(prepared, batch=4, micro=4, factory=f"{HERE}:build_putting", epochs=1), sink=ListSink(), device=CPU)


def test_another_error_passes_unchanged() -> None:
    with pytest.raises(RuntimeError, match="something else"), deterministic(ON, CPU):
        raise RuntimeError("something else")


def test_the_settings_of_the_caller_come_back() -> None:
    torch.use_deterministic_algorithms(True, warn_only=True)
    try:
        with deterministic(ON, CPU):
            assert not torch.is_deterministic_algorithms_warn_only_enabled()
        assert torch.is_deterministic_algorithms_warn_only_enabled()
    finally:
        torch.use_deterministic_algorithms(False)


def test_the_compiler_chooses_nothing_by_timing() -> None:
    import torch._inductor.config as inductor

    before = inductor.deterministic
    with deterministic(TrainSpec(deterministic=True, compile=True), CPU):
        assert inductor.deterministic
    assert inductor.deterministic == before


def test_cublas_is_told_before_cuda_starts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(WORKSPACE_VARIABLE, raising=False)
    prepare_process(OFF)
    assert WORKSPACE_VARIABLE not in os.environ
    with pytest.raises(SpecError, match=r"is not set and CUDA has started.*Start the process with"):
        _check_workspace(ON, started=True)
    _check_workspace(ON, started=False)
    assert os.environ[WORKSPACE_VARIABLE] == ":4096:8"
    _check_workspace(ON, started=True)
    monkeypatch.setenv(WORKSPACE_VARIABLE, ":16:8")
    prepare_process(ON)
    assert os.environ[WORKSPACE_VARIABLE] == ":16:8", "the user's stays"
    monkeypatch.setenv(WORKSPACE_VARIABLE, ":0:0")
    with pytest.raises(SpecError, match="is ':0:0'"):
        _check_workspace(ON, started=False)


def test_the_micro_batch_is_not_chosen_by_timing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """On a GPU the knee of the speeds decides; here only what is asked for is looked at."""
    from dataclasses import replace

    from tests.unit.loop_tests.rig import start
    from trainers.loop.request import SizingRequest
    from trainers.loop.tuner import batch_size_finder

    asked: list[bool] = []

    def probe(job: object, state: object, *, timed: bool, **rest: object) -> SizeReport:
        asked.append(timed)
        return SizeReport(1, "")

    monkeypatch.setattr(batch_size_finder, "probe_micro_batch", probe)
    prepared = write_data(tmp_path, 8)
    for on in (True, False):
        request = replace(request_for(prepared, batch=4, micro=4, deterministic=on), sizing=SizingRequest())
        job, state = start(request)
        batch_size_finder.size_micro_batch(replace(job, device=torch.device("cuda", 0)), state)
    assert asked == [False, True]
