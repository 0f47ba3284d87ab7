"""Figures of a search: no trial is left out, and every axis can be read."""

from __future__ import annotations

import re
from typing import Any

import pytest

from cluster.report.facts import TrialRow
from cluster.report.trials import parallel_plot, scale_of, trial_curves, trial_scatter

RATE, NAME, EMA = "train.optimizer.learning_rate", "train.optimizer.name", "train.ema"


def row(number: int, state: str = "done", epochs: int = 2, **values: Any) -> TrialRow:
    curve = {epoch: 1.0 / (epoch + number) for epoch in range(1, epochs + 1)}
    settings = {RATE: 10.0 ** -(number + 1), NAME: ("adamw", "sgd")[number % 2], EMA: None if number % 3 else True}
    return TrialRow(
        name=f"trial-{number}", values=settings | values, state=state, epochs=epochs,
        value=min(curve.values()) if curve else None, curve=curve,
    )  # fmt: skip


ROWS = [row(0), row(1, "failed", 0), row(2, "oom", 0), row(3, "diverged", 1), row(4, "stopped", 1)]


def texts(svg: str) -> list[str]:
    return [re.sub(r"<[^>]+>", "", found) for found in re.findall(r"<text[^>]*>(.*?)</text>", svg, flags=re.S)]


def test_choices_have_a_place_and_a_name_each() -> None:
    scale = scale_of(["sgd", "adamw", "lion", "sgd"])
    assert scale.ticks == ((0.0, "sgd"), (0.5, "adamw"), (1.0, "lion"))
    assert [scale.place(value) for value in ("sgd", "adamw", "lion")] == [0.0, 0.5, 1.0]
    assert scale_of([None, True, False]).ticks == ((0.0, "null"), (0.5, "true"), (1.0, "false"))
    assert scale_of(["one"]).ticks == ((0.5, "one"),)


def test_numbers_lie_on_a_line_and_far_apart_ones_on_a_logarithmic_one() -> None:
    scale = scale_of([32, 64, 128])
    assert scale.ticks == ((0.0, "32"), (pytest.approx(1 / 3), "64"), (1.0, "128"))
    rates = scale_of([1e-4, 1e-2, 1e-3])
    assert [label for _, label in rates.ticks] == ["1.00e-04", "0.001", "0.01"]
    assert rates.place(1e-3) == pytest.approx(0.5)
    many = scale_of([0.1 * index for index in range(1, 30)])
    assert [label for _, label in many.ticks] == ["0.1", "2.9"], "the ends"
    assert scale_of([0.3, 0.3]).place(0.3) == 0.5


def test_the_parallel_plot_names_choices_values_and_the_trials_without_a_value() -> None:
    shown = texts(parallel_plot("p", ROWS, [RATE, NAME, EMA], "validation.loss", "trial-0"))
    assert {"adamw", "sgd", "null", "true", "learning rate", "no value", "0.1", "1.00e-05"} <= set(shown)
    assert "0.5" in shown, "the metric's best value"
    alone = [row(1, "failed", 0), row(2, "failed", 0)]
    assert "no value" in texts(parallel_plot("q", alone, [RATE, NAME, EMA], "validation.loss", None))


@pytest.mark.parametrize("draw", ["parallel", "scatter", "curves"])
def test_every_trial_that_failed_is_a_cross(draw: str) -> None:
    def drawn(rows: list[TrialRow]) -> int:
        if draw == "parallel":
            svg = parallel_plot("x", rows, [RATE, NAME, EMA], "validation.loss", "trial-0")
        elif draw == "scatter":
            svg = trial_scatter("x", rows, [RATE, NAME], "validation.loss", "trial-0")
        else:
            svg = trial_curves("x", rows, "validation.loss", "trial-0")
        return len(re.findall(r"<use [^>]*stroke: var\(--c4\)", svg))

    assert drawn(ROWS) == 3
    assert drawn([ROWS[0], ROWS[4]]) == 0, "what the scheduler stopped has not failed"


def test_a_trial_that_still_runs_has_no_cross_and_no_line() -> None:
    rows = [ROWS[0], ROWS[3], row(5, "running", 0)]
    assert "no value" not in texts(parallel_plot("p", rows, [RATE, NAME, EMA], "validation.loss", None))
    assert len(re.findall(r"<use [^>]*stroke: var\(--c4\)", trial_scatter("s", rows, [RATE, NAME], "loss", None))) == 1
