"""Recipes that train use the training engine: accumulation does not change the result, an interrupted student goes on
as it was, and on a running Ray its workers do the work.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from cluster.errors import InterruptedRunError
from cluster.spec.model import MlpSpec
from cluster.telemetry.events import ListSink
from trainers.compress.candidate import TrainingTask
from trainers.compress.retraining import Retraining
from trainers.compress.stage import run_compression
from trainers.compress.students import student_arguments
from trainers.data.shards import PreparedData
from trainers.loop import FitRequest, fit


@pytest.fixture
def request_of(make_context: Any, prepared_digits: PreparedData, tmp_path: Path) -> FitRequest:
    """A student of another family (without batch norm) that learns answers and features for two epochs."""
    section = {"recipes": ("distill",), "distill": {"epochs": 2, "feature_weight": 0.5}}
    context = make_context("compress", compress=section, train={"workers": 1, "batch_size_global": 64})
    retraining = Retraining(
        resolved=context.run_resolved, prepared=prepared_digits, weights=context.files("train"),
        folder=tmp_path / "models", events=None, sink=ListSink(), stage="compress",
    )  # fmt: skip
    model = MlpSpec(family="mlp", hidden=(32,))
    arguments = student_arguments(model, prepared_digits.inputs, prepared_digits.num_outputs)
    request = retraining._request(TrainingTask(arguments, 2, 3e-3, distill=True), tmp_path / "fit")
    plan = request.batch.for_workers(1).for_micro_batch(64)
    return replace(request, batch=plan, checkpoints=None)


def test_accumulation_does_not_change_what_a_student_learns(request_of: FitRequest) -> None:
    request_of = replace(request_of, train=request_of.train.model_copy(update={"epochs": 1}))
    whole = fit(request_of, sink=ListSink())
    plan = request_of.batch.for_micro_batch(16)
    parts = fit(replace(request_of, batch=plan), sink=ListSink())
    assert parts.updates == whole.updates
    assert any(name.startswith("student.projection") for name in whole.weights)
    for name, tensor in whole.weights.items():
        torch.testing.assert_close(parts.weights[name], tensor, atol=2e-4, rtol=1e-3, msg=name)


def test_a_student_that_was_interrupted_goes_on_to_the_same_bytes(request_of: FitRequest, tmp_path: Path) -> None:
    whole = fit(replace(request_of, checkpoints=tmp_path / "whole"), sink=ListSink())
    asked = 0

    def interrupt() -> bool:
        nonlocal asked
        asked += 1
        return asked == 17  # in the second epoch of 13 windows

    halved = replace(request_of, checkpoints=tmp_path / "halved")
    with pytest.raises(InterruptedRunError):
        fit(halved, sink=ListSink(), interrupt=interrupt)
    again = fit(halved, sink=ListSink())
    assert again.updates == whole.updates
    for name, tensor in whole.weights.items():
        assert torch.equal(again.weights[name], tensor), name


@pytest.mark.slow
def test_fine_tuning_runs_on_the_workers_of_a_running_ray(ray_local: str, make_context: Any, monkeypatch: Any) -> None:
    from trainers.launch import fit as launch

    asked: list[FitRequest] = []

    def watched(request: FitRequest, **more: Any) -> Any:
        asked.append(request)
        return real(request, **more)

    real = launch.launch_fit
    monkeypatch.setattr(launch, "launch_fit", watched)
    section = {
        "recipes": ("prune",), "budget": {"max_drop": 0.2}, "dense_rival": False, "max_class_drop": 1.0,
        "prune": {"ratios": (0.5,), "epochs": 1},
    }  # fmt: skip
    context = make_context("compress", compress=section, train={"epochs": 1, "workers": 2, "batch_size_global": 32})
    facts = run_compression(replace(context, ensure_ray=lambda: True)).facts.to_json()
    assert [request.batch.workers for request in asked] == [2]
    assert facts["candidates"][0]["name"] == "prune50"
    assert facts["candidates"][0]["accuracy"] > 0.8
