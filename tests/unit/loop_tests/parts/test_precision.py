"""AMP, clipping and windows that must not be applied: "Precision, clipping, values that are not finite" of
docs/training_rules.py."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from cluster.errors import DivergedError, SpecError
from cluster.spec.train import TrainSpec
from cluster.telemetry.events import ListSink
from tests.unit.loop_tests.rig import HERE, request_for, start, write_data
from trainers.loop import fit
from trainers.loop.data.sampler import Window
from trainers.loop.parts.clipping import adaptive_clip, clip_gradient, unit_norms
from trainers.loop.state import Job, State
from trainers.loop.step import check_budget, learning_rate_now, update

ROWS = 16
SINGLE = {"double": False}


def window(index: int = 0, rows: int = ROWS) -> Window:
    return Window(0, index, np.arange(rows), 0, rows)


def parameters_of(state: State) -> torch.Tensor:
    return torch.cat([parameter.detach().flatten() for parameter in state.exchange.parameters]).clone()


def started(tmp_path: Path, **more: Any) -> tuple[Job, State]:
    prepared = write_data(tmp_path / "data", ROWS, dtype="FP32")
    return start(request_for(prepared, batch=ROWS, micro=8, arguments=SINGLE, **more))


def test_clip_sees_unscaled_gradients(tmp_path: Path) -> None:
    sgd = {"name": "sgd", "learning_rate": 0.1, "momentum": 0.0, "weight_decay": 0.0}
    options = {"optimizer": sgd, "clip_norm": 0.05, "schedule": {"name": "constant", "warmup": 0.0}}
    job, state = started(tmp_path, **options)
    state.scaler = torch.amp.GradScaler("cpu", init_scale=1024.0)
    reference_job, reference = started(tmp_path, **options)
    before = parameters_of(state)
    report, expected = update(job, state, window()), update(reference_job, reference, window())
    assert report.gradient_norm == pytest.approx(expected.gradient_norm, rel=1e-5)
    torch.testing.assert_close(parameters_of(state), parameters_of(reference), rtol=1e-5, atol=1e-7)
    moved = float((parameters_of(state) - before).norm())
    assert moved == pytest.approx(0.1 * 0.05, rel=1e-3), "clipping scaled gradients would move 1024 times less"


@pytest.mark.parametrize("fused", [False, True])
def test_overflow_skips_params_optimizer_and_schedule(tmp_path: Path, fused: bool) -> None:
    job, state = started(
        tmp_path,
        optimizer={"name": "adamw", "learning_rate": 0.1},
        ema={"decay": 0.9},
        clip_norm=1.0,
        objective=f"{HERE}:poisoned_losses",
        objective_arguments={"at": (3,)},  # micro-batches 0, 1 are the good window, 2, 3 the bad one
    )
    if not fused:
        groups = [{**group, "fused": None} for group in state.optimizer.param_groups]
        state.optimizer = torch.optim.AdamW(groups, lr=0.0, foreach=False, fused=False)
    calls = []
    stepped = state.optimizer.step
    state.optimizer.step = lambda *a, **k: (calls.append(1), stepped(*a, **k))[1]  # type: ignore[method-assign]
    state.scaler = torch.amp.GradScaler("cpu", init_scale=1024.0)
    assert update(job, state, window(0)).made
    calls.clear()
    held = parameters_of(state)
    moments = [{k: v.clone() for k, v in s.items()} for s in state.optimizer.state.values()]
    averages = [average.clone() for average in state.ema.averages]  # type: ignore[union-attr]
    learning_rate = learning_rate_now(job, state)
    report = update(job, state, window(1))
    assert not report.made
    assert torch.equal(parameters_of(state), held)
    for now, then in zip(state.optimizer.state.values(), moments, strict=True):
        assert all(torch.equal(now[name], then[name]) for name in then)
    assert all(torch.equal(a, b) for a, b in zip(state.ema.averages, averages, strict=True))  # type: ignore[union-attr]
    assert learning_rate_now(job, state) == learning_rate, "the schedule stays"
    assert state.scaler.get_scale() == 512.0, "the scale halves"
    assert (state.cursor.window, state.cursor.update, state.cursor.skipped) == (2, 1, 1), "the data cursor moves"
    assert len(calls) == (1 if fused else 0), "hooking step cannot tell: a fused step is called and skips inside"


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_bf16_or_fp32_has_no_scaler_so_the_trainer_must_guard_nonfinite(tmp_path: Path, precision: str) -> None:
    job, state = started(
        tmp_path,
        precision=precision,
        clip_norm=1.0,
        objective=f"{HERE}:poisoned_losses",
        objective_arguments={"at": (0,)},
    )
    assert state.scaler is None
    before = parameters_of(state)
    report = update(job, state, window())
    assert not report.made
    assert not np.isfinite(report.gradient_norm)
    assert torch.equal(parameters_of(state), before)
    assert update(job, state, window(1)).made, "the next window is applied"


def test_nonfinite_windows_past_the_budget_end_the_run(tmp_path: Path) -> None:
    prepared = write_data(tmp_path / "data", ROWS, dtype="FP32")
    request = request_for(
        prepared,
        batch=4,
        micro=4,
        arguments=SINGLE,
        epochs=4,
        faults={"nonfinite_updates": 2, "rollbacks": 0},
        objective=f"{HERE}:poisoned_losses",
        objective_arguments={"at": tuple(range(3, 100)), "value": float("nan")},
    )
    with pytest.raises(DivergedError, match="3 windows in a row"):
        fit(request, sink=ListSink(), device=torch.device("cpu"))


def test_a_few_nonfinite_windows_are_within_the_budget(tmp_path: Path) -> None:
    job, state = started(tmp_path, objective=f"{HERE}:poisoned_losses", objective_arguments={"at": (0, 2, 6)})
    for index in range(4):
        update(job, state, window(index))
        check_budget(job, state, window(index))
    assert state.cursor.skipped == 3
    assert state.cursor.update == 1


@pytest.mark.parametrize("precision", ["bf16", "fp16"])
def test_autocast_runs_on_the_cpu_and_learns(tmp_path: Path, precision: str) -> None:
    prepared = write_data(tmp_path / "data", 120, dtype="FP32")
    seen = []

    request = request_for(
        prepared,
        batch=24,
        micro=8,
        arguments=SINGLE,
        epochs=6,
        precision=precision,
        optimizer={"name": "adamw", "learning_rate": 0.02},
        clip_norm=1.0,
    )
    job, state = start(request)
    state.model[0].register_forward_hook(lambda module, inputs, output: seen.append(output.dtype))  # type: ignore[index]
    update(job, state, window(0, 24))
    assert set(seen) == {torch.bfloat16 if precision == "bf16" else torch.float16}
    assert (state.scaler is not None) == (precision == "fp16")
    result = fit(request, sink=ListSink(), device=torch.device("cpu"))
    assert result.history[-1].metrics["train.loss"] < 0.7 * result.history[0].metrics["train.loss"]
    assert all(tensor.dtype == torch.float32 for tensor in result.weights.values()), "weights stay in fp32"


def test_fp16_fused_with_clipping_equals_fp16_unfused(tmp_path: Path) -> None:
    ends = []
    for fused in (True, False):
        job, state = started(tmp_path, precision="fp16", clip_norm=0.5, optimizer={"learning_rate": 0.01})
        state.scaler = torch.amp.GradScaler("cpu", init_scale=256.0, growth_interval=7)
        if not fused:
            groups = [{**group, "fused": None} for group in state.optimizer.param_groups]
            state.optimizer = torch.optim.AdamW(groups, lr=0.0, foreach=True, fused=False)
        for index in range(100):
            update(job, state, window(index))
        ends.append(parameters_of(state))
    torch.testing.assert_close(ends[0], ends[1], rtol=0, atol=1e-5)


def test_clip_by_value_then_norm_returns_the_norm_as_it_came() -> None:
    parameter = torch.nn.Parameter(torch.zeros(4))
    gradient = torch.tensor([3.0, -4.0, 0.5, 0.0])
    parameter.grad = gradient
    spec = TrainSpec.model_validate_json(json.dumps({"clip_value": 1.0, "clip_norm": 0.5}))
    norm = clip_gradient(gradient, [parameter], spec)
    assert float(norm) == pytest.approx(float(torch.tensor([3.0, -4.0, 0.5]).norm()))
    expected = torch.tensor([1.0, -1.0, 0.5, 0.0])
    torch.testing.assert_close(gradient, expected * 0.5 / expected.norm(), rtol=1e-5, atol=1e-6)


def test_agc_bounds_each_output_unit_by_its_weights() -> None:
    parameter = torch.nn.Parameter(torch.tensor([[3.0, 4.0], [0.3, 0.4]]))
    parameter.grad = torch.tensor([[0.03, 0.0], [3.0, 4.0]])
    adaptive_clip(parameter, 0.1)
    assert torch.equal(parameter.grad[0], torch.tensor([0.03, 0.0])), "a small gradient is left alone"
    assert float(parameter.grad[1].norm()) == pytest.approx(0.1 * 0.5)
    assert unit_norms(parameter.detach()).shape == (2, 1)


def test_wire_and_schedule_knobs_cannot_be_misspelt() -> None:
    from cluster.spec import parse_spec

    text = "version: 1\ndata: {source: {kind: sklearn, dataset: digits}}\ntrain: {exchange: {wires: bf16}}"
    with pytest.raises(SpecError, match="wire"):
        parse_spec(text)
