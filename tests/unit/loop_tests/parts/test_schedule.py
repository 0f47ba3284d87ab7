"""The learning rate is a pure function of the update index: "Learning rate and growth" of
docs/training_rules.py."""

from __future__ import annotations

import itertools
import json
import math
from pathlib import Path

import numpy as np
import pytest
import torch

from cluster.errors import SpecError
from cluster.spec.optimizer import OptimizerSpec, PlateauSpec, ScheduleSpec
from cluster.spec.train import BestSpec
from tests.unit.loop_tests.rig import request_for, start, write_data
from trainers.loop.loop import remaining_windows
from trainers.loop.parts.plateau import Plateau
from trainers.loop.parts.schedule import SHAPES, learning_rate_factor, peak_learning_rate, settled, warmup_updates
from trainers.loop.step import update

DECAYING = sorted(SHAPES)


def curve(total: int, **schedule: object) -> list[float]:
    spec = ScheduleSpec.model_validate_json(json.dumps(schedule))
    return [learning_rate_factor(spec, update, total) for update in range(total)]


def test_warmup_cosine_shape() -> None:
    values = curve(100, name="cosine", warmup=0.1, floor=0.1)
    assert values[0] > 0
    assert values[9] == values[10] == 1.0
    assert all(a < b for a, b in itertools.pairwise(values[:10]))
    assert all(a > b for a, b in itertools.pairwise(values[10:]))
    assert abs(values[99] - 0.1) < 1e-12
    spec = ScheduleSpec(name="cosine", warmup=0.1, floor=0.1)
    assert learning_rate_factor(spec, 1000, 100) == pytest.approx(0.1, abs=1e-12)


@pytest.mark.parametrize("name", DECAYING)
@pytest.mark.parametrize("total", [2, 3, 10, 100, 1001])
def test_every_schedule_starts_above_zero_peaks_after_warmup_and_ends_at_the_floor(name: str, total: int) -> None:
    values = curve(total, name=name, warmup=0.1, floor=0.05)
    warmup = max(1, min(total - 1, round(0.1 * total)))
    assert values[0] > 0
    assert values[warmup - 1] == pytest.approx(1.0, abs=1e-12)
    assert max(values) <= 1.0 + 1e-12
    assert values[-1] == pytest.approx(0.05, abs=1e-12)
    assert min(values[warmup:]) >= 0.05 - 1e-12
    spec = ScheduleSpec.model_validate_json(json.dumps({"name": name, "warmup": 0.1, "floor": 0.05}))
    assert learning_rate_factor(spec, total + 500, total) == values[-1], "and stays there"
    if name != "one_cycle":
        assert values[:warmup] == [(index + 1) / warmup for index in range(warmup)], "a linear warm-up"


@pytest.mark.parametrize("name", DECAYING)
def test_without_warmup_the_first_update_is_the_peak(name: str) -> None:
    assert curve(50, name=name, warmup=0.0, floor=0.01)[0] == pytest.approx(1.0)


def test_constant_stays_at_the_peak() -> None:
    assert curve(40, name="constant", warmup=0.1) == [0.25, 0.5, 0.75, *[1.0] * 37]


def test_shapes_are_what_their_names_say() -> None:
    restarts = curve(301, name="cosine_restarts", warmup=0.0, floor=0.0, cycles=3)
    assert restarts[100] == restarts[200] == 1.0
    assert restarts[99] < 0.01
    steps = curve(101, name="step", warmup=0.0, floor=0.01, milestones=[0.5, 0.75])
    assert (steps[49], steps[50], steps[75]) == (1.0, pytest.approx(0.1), pytest.approx(0.01))
    decay = curve(101, name="wsd", warmup=0.0, floor=0.0, decay=0.2)
    assert decay[80] == pytest.approx(1.0)
    assert decay[90] == pytest.approx(0.5)
    exponential = curve(101, name="exponential", warmup=0.0, floor=0.01)
    assert exponential[50] == pytest.approx(0.1)
    squares = curve(101, name="polynomial", warmup=0.0, floor=0.0, power=2.0)
    assert squares[50] == pytest.approx(0.25)
    roots = curve(1000, name="inverse_sqrt", warmup=0.01, floor=0.0)
    assert roots[40] / roots[160] > 1.9, "about sqrt(4) while the end is far"


def test_restarts_with_t_mult_are_torchs() -> None:
    """Cosines of 10, 20 and 40 updates: torch's `CosineAnnealingWarmRestarts`."""
    found = curve(71, name="cosine_restarts", warmup=0.0, floor=0.1, cycles=3, t_mult=2.0)
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=1.0)
    torchs = torch.optim.lr_scheduler.CosineAnnealingWarmRestarts(optimizer, 10, 2, eta_min=0.1)
    for number in range(70):
        assert found[number] == pytest.approx(optimizer.param_groups[0]["lr"], abs=1e-9), number
        optimizer.step()
        torchs.step()
    assert found[70] == 0.1, "the last update is at the floor"


@pytest.mark.parametrize(
    ("keys", "warmup"),
    [
        ({"warmup_updates": 7}, 7),
        ({"warmup_epochs": 1.5}, 15),
        ({"warmup_epochs": 0.0}, 0),
        ({"warmup_epochs": 9.0}, 29),
    ],
)
def test_a_warmup_in_updates_or_epochs(keys: dict, warmup: int) -> None:
    spec = settled(ScheduleSpec(name="linear", floor=0.0, **keys), (10, 10, 10), 1.0)
    assert warmup_updates(spec, 30) == warmup
    values = [learning_rate_factor(spec, update, 30) for update in range(30)]
    assert values[:warmup] == [(update + 1) / warmup for update in range(warmup)]
    assert values[max(warmup - 1, 0)] == 1.0


def test_eta_min_is_the_last_learning_rate_whatever_the_peak() -> None:
    for peak in (0.5, 0.02):
        spec = settled(ScheduleSpec(name="cosine", eta_min=0.01), (50,), peak)
        assert peak * learning_rate_factor(spec, 49, 50) == pytest.approx(0.01)


def test_a_function_of_ones_own_is_asked_for_every_update() -> None:
    own = ScheduleSpec(name="tests.unit.loop_tests.rig:own_schedule", warmup=0.5)
    assert [learning_rate_factor(own, update, 4) for update in range(4)] == [1.0, 0.8, 1 / 1.5, 1 / 1.75]
    with pytest.raises(SpecError, match="it returned -3 for update 1 of 4"):
        learning_rate_factor(ScheduleSpec(name="operator:sub"), 1, 4)


@pytest.mark.parametrize(
    ("micro", "rows"), [(12, 96), (3, 96), (3, 92)], ids=["K=1", "K=4", "K=4-with-a-short-last-window"]
)
def test_lr_is_a_function_of_optimizer_steps_only(tmp_path: Path, micro: int, rows: int) -> None:
    job, state = start(request_for(write_data(tmp_path, rows), batch=12, micro=micro, epochs=2))
    seen = []
    for epoch in range(2):
        state.cursor.epoch, state.cursor.window = epoch, 0
        seen += [update(job, state, window).learning_rate for window in remaining_windows(job, state)]
    expected = [3e-3 * learning_rate_factor(ScheduleSpec(), index, 16) for index in range(16)]
    assert seen == expected


def test_resume_by_index_equals_uninterrupted_and_sequential_lr_does_not() -> None:
    total, warmup, cut = 30, 5, 17
    spec = ScheduleSpec(name="cosine", warmup=warmup / total, floor=0.1)
    whole = [learning_rate_factor(spec, index, total) for index in range(total)]
    resumed = [learning_rate_factor(spec, index, total) for index in range(cut, total)]
    assert resumed == whole[cut:]

    def torch_curve(start: int) -> list[float]:
        optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=1.0)
        for group in optimizer.param_groups:
            group["initial_lr"] = 1.0
        last = start - 1
        parts = [
            torch.optim.lr_scheduler.LinearLR(optimizer, 0.2, total_iters=warmup, last_epoch=last),
            torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, total - warmup, last_epoch=last),
        ]
        both = torch.optim.lr_scheduler.SequentialLR(optimizer, parts, milestones=[warmup], last_epoch=last)
        values = []
        for _ in range(start, total):
            values.append(optimizer.param_groups[0]["lr"])
            optimizer.step()
            both.step()
        return values

    assert not np.allclose(torch_curve(cut), torch_curve(0)[cut:]), "the shortcut that must fail (pytorch#162591)"


@pytest.mark.parametrize(("rule", "factor"), [("none", 1.0), ("linear", 4.0), ("sqrt", 2.0)])
def test_learning_rate_follows_the_global_batch_by_its_rule(rule: str, factor: float) -> None:
    spec = OptimizerSpec.model_validate_json(json.dumps({"learning_rate": 0.1, "scaling": rule, "scaling_base": 64}))
    assert peak_learning_rate(spec, 256) == pytest.approx(0.1 * factor)


def test_plateau_lowers_after_patience_and_stops_at_its_floor() -> None:
    spec, best, plateau = PlateauSpec(factor=0.1, patience=1, floor=0.05), BestSpec(), Plateau()
    factors = []
    for value in [1.0, 0.9, 0.95, 0.95, 0.95, 0.95, 0.8, math.nan, math.nan]:
        plateau.observe(value, spec, best)
        factors.append(plateau.factor)
    assert factors == [1, 1, 1, 0.1, 0.1, 0.05, 0.05, 0.05, 0.05]


def test_a_growing_batch_accumulates_more_and_memory_stays_flat(tmp_path: Path) -> None:
    request = request_for(write_data(tmp_path, 100), batch=16, micro=8, epochs=4, growth={"factor": 4.0})
    job, state = start(request)
    state.cursor.epoch = 3
    window = next(remaining_windows(job, state))
    assert len(window.rows) == 64
    sizes = [where.stop - where.start for where in window.micro_slices(state.micro_size)]
    assert sizes == [8] * 8, "more accumulation, the same micro-batch"
    assert job.updates_total == 7 + 4 + 3 + 2
