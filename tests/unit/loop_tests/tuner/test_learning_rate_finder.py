"""The range test of learning rates."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from cluster.telemetry.events import ListSink, TrainStep
from tests.unit.loop_tests.rig import copy_of_state, is_same_state, request_for, start, write_data
from trainers.loop import fit
from trainers.loop.tuner.learning_rate_finder import range_test, steepest


def test_range_test_suggests_a_rate_that_trains_and_leaves_the_model_as_it_was(tmp_path: Path) -> None:
    prepared = write_data(tmp_path / "data", 96, dtype="FP32")
    job, state = start(request_for(prepared, batch=16, micro=16, arguments={"double": False}))
    before = copy_of_state(job, state)
    report = range_test(job, state, low=1e-5, high=10.0, windows=60)
    assert is_same_state(before, copy_of_state(job, state))
    assert 1e-3 < report.suggestion < 1.0
    assert list(report.learning_rates) == sorted(report.learning_rates)


def test_steepest_point_of_a_curve() -> None:
    assert steepest([1.0, 10.0, 100.0, 1000.0, 10000.0], [1.0, 1.0, 0.5, 0.1, 0.1]) == 100.0


def test_find_learning_rate_replaces_the_specs_and_is_kept_when_the_run_goes_on(tmp_path: Path) -> None:
    """With a scaling rule: what is found is the rate before scaling, so that a spec that says it does the same."""
    prepared = write_data(tmp_path / "data", 96, dtype="FP32")
    optimizer = {"learning_rate": 1e-5, "scaling": "linear", "scaling_base": 4}
    options: dict[str, Any] = {"batch": 16, "micro": 16, "arguments": {"double": False}, "epochs": 2}
    request = request_for(prepared, **options, optimizer=optimizer, checkpoints=tmp_path / "ck")
    sink = ListSink()
    found = fit(replace(request, find_learning_rate=True), sink=sink, device=torch.device("cpu"))
    rate = found.learning_rate_found
    assert rate is not None
    assert 1e-4 < rate < 1.0
    peak = max(event.learning_rate for event in sink.events if isinstance(event, TrainStep))
    assert peak == pytest.approx(4 * rate, rel=0.5), "on a schedule whose peak that is"
    said = request_for(prepared, **options, optimizer={**optimizer, "learning_rate": rate})
    plain = fit(said, sink=ListSink(), device=torch.device("cpu"))
    for name, tensor in plain.weights.items():
        torch.testing.assert_close(found.weights[name], tensor, rtol=1e-5, atol=1e-6)
    longer = replace(request, train=request.train.model_copy(update={"epochs": 3}), find_learning_rate=True)
    assert fit(longer, sink=ListSink(), device=torch.device("cpu")).learning_rate_found == rate
