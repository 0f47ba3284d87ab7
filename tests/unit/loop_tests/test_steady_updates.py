"""A steady update reads nothing back from the device, and doing without changes no byte."""

from __future__ import annotations

import random
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from cluster.errors import InterruptedRunError
from cluster.spec.optimizer import OptimizerSpec
from cluster.telemetry.events import ListSink, TrainStep
from tests.unit.loop_tests.rig import HERE, request_for, start, write_data
from trainers.loop import FitResult, fit
from trainers.loop.loop import remaining_windows
from trainers.loop.parts.optimizer import build_optimizer, set_learning_rate
from trainers.loop.parts.quick_step import QuickStep
from trainers.loop.parts.rng import QuickSnapshots, quick_restore
from trainers.loop.step import finish_update, start_update, update

CPU = torch.device("cpu")
READS = ("aten._local_scalar_dense", "aten.nonzero", "aten.is_nonzero", "aten.equal")


class CountReads(TorchDispatchMode):
    """Counts the operations that hand a tensor's value to the host: on a GPU each waits for the device."""

    def __init__(self) -> None:
        super().__init__()
        self.num_reads = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.num_reads += str(func).startswith(READS)
        masks = [a for a in args[1] if a is not None] if str(func).startswith("aten.index.Tensor") else []
        self.num_reads += any(mask.dtype == torch.bool for mask in masks)
        return func(*args, **(kwargs or {}))


OPTIONS: dict[str, dict[str, Any]] = {
    "plain": {},
    "ema-clip-fp16": {"ema": {"decay": 0.9}, "clip_norm": 0.05, "precision": "fp16"},
    "sgd-clips": {"optimizer": {"name": "sgd", "learning_rate": 0.1}, "clip_value": 0.02, "clip_agc": 0.1},
}


@pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS)
@pytest.mark.parametrize("ignore_every", [0, 5], ids=["all-count", "some-ignored"])
def test_fifty_steady_updates_read_nothing_from_the_device(
    tmp_path: Path, options: dict[str, Any], ignore_every: int
) -> None:
    prepared = write_data(tmp_path, 240, dtype="FP32", ignore_every=ignore_every)
    request = request_for(prepared, batch=4, micro=2, arguments={"double": False, "norm": True}, **options)
    counts = {}
    for deferred in (True, False):
        job, state = start(request)
        state.deferred = deferred
        windows = remaining_windows(job, state)
        update(job, state, next(windows))  # the first one makes the optimizer's state
        with CountReads() as reads:
            for _ in range(50):
                start_update(job, state, next(windows))
                if not deferred:
                    finish_update(job, state)
        counts[deferred] = reads.num_reads
        finish_update(job, state)
        assert state.cursor.update + state.cursor.skipped == 51
    assert counts[True] == 0
    assert counts[False] >= 50, "the counter sees what there is to see"


def _fit(request: Any, deferred: bool, monkeypatch: pytest.MonkeyPatch, **more: Any) -> tuple[FitResult, ListSink]:
    monkeypatch.setattr("trainers.loop.setup.defers", lambda device: deferred)
    sink = ListSink()
    return fit(request, sink=sink, device=CPU, **more), sink


@pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS)
def test_reading_one_update_late_ends_with_the_same_bytes(
    tmp_path: Path, options: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """With windows that are not finite (also past the budget), inspections, checkpoints and short last windows."""
    prepared = write_data(tmp_path / "data", 22, dtype="FP32")
    ends = []
    for deferred in (False, True):
        request = request_for(
            prepared,
            batch=4,
            micro=2,
            arguments={"double": False, "dropout": 0.3, "norm": True},
            epochs=3,
            checkpoints=tmp_path / f"ck{deferred}",
            checkpoint={"every_updates": 4},
            faults={"nonfinite_updates": 1, "rollbacks": 1},
            diagnostics_every_updates=5,
            log_every_updates=1,
            objective=f"{HERE}:poisoned_losses",
            objective_arguments={"at": (6, 16, 18)},
            **options,
        )
        ends.append(_fit(request, deferred, monkeypatch))
    (plain, told), (late, told_late) = ends
    assert plain.weights.keys() == late.weights.keys()
    assert all(torch.equal(plain.weights[name], late.weights[name]) for name in plain.weights)
    assert (plain.metrics, plain.updates, plain.skipped_updates) == (late.metrics, late.updates, late.skipped_updates)
    steps, steps_late = (
        [(e.update, e.loss, e.learning_rate) for e in sink.events if isinstance(e, TrainStep)] for sink in ends_of(ends)
    )
    assert [s[1:] for s in steps] == [s[1:] for s in steps_late], "the same losses at the same learning rates"
    kinds = [sorted(event.model_dump()["kind"] for event in sink.events) for sink in (told, told_late)]
    assert kinds[0] == kinds[1], "the same inspections, checkpoints and epochs"


def ends_of(ends: list[tuple[FitResult, ListSink]]) -> list[ListSink]:
    return [sink for _, sink in ends]


def test_a_stop_that_is_read_late_loses_no_update(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    prepared = write_data(tmp_path / "data", 24, dtype="FP32")
    net = {"dropout": 0.2, "double": False}
    request = request_for(prepared, batch=4, micro=4, epochs=2, checkpoints=tmp_path / "ck", arguments=net)
    whole, _ = _fit(request_for(prepared, batch=4, micro=4, epochs=2, arguments=net), False, monkeypatch)
    calls = iter(range(100))
    with pytest.raises(InterruptedRunError):
        _fit(request, True, monkeypatch, interrupt=lambda: next(calls) == 3)
    resumed, _ = _fit(request, True, monkeypatch)
    assert resumed.updates == whole.updates == 12
    assert all(torch.equal(resumed.weights[name], whole.weights[name]) for name in whole.weights)


@pytest.mark.parametrize("name", ["adamw", "sgd"])
def test_quick_step_is_the_optimizers_own_step(name: str) -> None:
    """Byte for byte, over a reload of the state, and with a step that is skipped on the device."""
    spec = OptimizerSpec.model_validate({"name": name, "nesterov": True})
    twin = torch.nn.Sequential(torch.nn.Linear(8, 5), torch.nn.Linear(5, 2))
    ends = []
    for quick in (True, False):
        torch.manual_seed(3)
        for layer in twin:
            layer.reset_parameters()  # type: ignore[operator]
        optimizer = build_optimizer(twin, spec)
        step, calls = QuickStep(optimizer), []
        for number in range(8):
            for parameter in twin.parameters():
                if parameter.grad is None:
                    parameter.grad = torch.zeros_like(parameter)
                parameter.grad.copy_(torch.randn_like(parameter))
            set_learning_rate(optimizer, 0.01 * (number + 1))
            if number == 4:
                optimizer.load_state_dict(optimizer.state_dict())
            if quick:
                calls.append(step.ready)
                skip = torch.tensor(float(number == 6)) if step.ready and number > 5 else None
                step.step(skip)
            elif number != 6:
                optimizer.step()
        assert calls == ([True] * 8 if quick else [])
        ends.append([*(p.detach().clone() for p in twin.parameters()), *_moments(optimizer)])
    assert all(torch.equal(a, b) for a, b in zip(*ends, strict=True))


def _moments(optimizer: torch.optim.Optimizer) -> list[torch.Tensor]:
    return [value.clone() for state in optimizer.state.values() for value in state.values() if value is not None]


def test_quick_snapshots_see_every_draw() -> None:
    """Also a normal number that numpy keeps back: drawing it moves none of the generator's words."""
    np.random.seed(5)
    snapshots = QuickSnapshots()
    draws = {
        "nothing": lambda: None,
        "uniform": lambda: np.random.uniform(),
        "normal": lambda: np.random.normal(),
        "the one kept back": lambda: np.random.normal(),
        "python": lambda: random.gauss(0.0, 1.0),
        "torch": lambda: torch.rand(()),
    }
    for draw in (*draws.values(), *draws.values()):
        draw()
        taken = snapshots.take()
        values = [(np.random.normal(), random.gauss(0.0, 1.0), float(torch.rand(()))) for _ in range(3)]
        quick_restore(taken)
        assert [(np.random.normal(), random.gauss(0.0, 1.0), float(torch.rand(()))) for _ in range(3)] == values
        quick_restore(taken)


def test_training_loads_no_compiler_that_it_does_not_use(tmp_path: Path) -> None:
    """Importing torch's costs each worker a second of CPU before its first update."""
    prepared = write_data(tmp_path / "data", 12, dtype="FP32")
    code = (
        "import sys, pathlib, torch\n"
        "from tests.unit.loop_tests.rig import request_for\n"
        "from trainers.loop import fit\n"
        "from cluster.telemetry.events import ListSink\n"
        f"at = pathlib.Path({str(tmp_path)!r})\n"
        "request = request_for(at / 'data', batch=4, micro=4, arguments={'double': False}, checkpoints=at / 'ck')\n"
        "fit(request, sink=ListSink(), device=torch.device('cpu'))\n"
        "sys.exit('torch._dynamo' in sys.modules or 'sympy' in sys.modules)\n"
    )
    assert prepared.exists()
    subprocess.run([sys.executable, "-c", code], check=True, timeout=120)
