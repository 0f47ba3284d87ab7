"""Numbers of a run that diverged: every view of its events takes them, and none hides what happened."""

from __future__ import annotations

import io
import math
from pathlib import Path

import pytest
from rich.console import Console

from cluster.report import write_report
from cluster.spec.load import validate_spec
from cluster.store.run_folder import RunFolder
from cluster.telemetry.events import (
    Diagnostics,
    EpochFinished,
    Record,
    RunFailed,
    RunStarted,
    StageStarted,
    TrainStep,
    TrialUpdated,
    read_events,
)
from cluster.telemetry.plain import PlainDisplay
from cluster.telemetry.progress import draw_run
from cluster.telemetry.view import RunView, format_bytes, format_duration, format_metric, format_value
from trainers.diagnose.findings import diagnose
from trainers.tensorboard import write_tensorboard
from trainers.trackers.points import tell
from trainers.trackers.wandb import history_rows

NAN, INF = math.nan, math.inf
EXTREMES = [NAN, INF, -INF, 1e308, -1e308, 5e-324, 0.0]


def story(values: list[float]) -> list[Record]:
    """A run with these numbers wherever training and search give one; without any where the list is empty."""
    events: list[Record] = [
        RunStarted(run="wild", stages=["search", "train"], pid=1, host="here"),
        StageStarted(stage="search", digest="s"),
    ]
    for number, value in enumerate(values or [None]):
        metrics = {} if value is None else {"validation.loss": value, "validation.accuracy": value, "epoch": 1.0}
        events.append(
            TrialUpdated(
                stage="search", trial=str(number), state="failed", parameters={"a": number, "b": 0.1}, metrics=metrics
            )
        )
    events.append(StageStarted(stage="train", digest="t"))
    for number, value in enumerate(values, 1):
        events += [
            TrainStep(
                stage="train", epoch=number, epochs=9, update=number, updates=9, loss=value, learning_rate=value,
                samples_per_s=value, eta_s=value, extra={"gradient_norm": value},
            ),
            EpochFinished(
                stage="train", epoch=number, epochs=9, update=number,
                metrics={"train.loss": value, "validation.loss": value, "validation.accuracy": value},
            ),
            Diagnostics(stage="train", update=number, values={"a": {"gradient_norm": value, "update_ratio": value}}),
        ]  # fmt: skip
    if not values:
        events.append(EpochFinished(stage="train", epoch=1, epochs=9, update=1, metrics={}))
    error = {"attempted": "Cannot go on", "found": "3 windows were not finite", "message": "Cannot go on"}
    return [*events, RunFailed(run="wild", error=error)]


@pytest.mark.parametrize("values", [*([value] for value in EXTREMES), EXTREMES, []], ids=str)
def test_every_view_takes_numbers_that_are_not_finite_or_at_a_floats_end(tmp_path: Path, values: list[float]) -> None:
    run = RunFolder(tmp_path / "wild")
    run.path.mkdir()
    for event in story(values):
        run.sink().emit(event)
    events = read_events(run.events)
    assert [type(event) for event in events] == [type(event) for event in story(values)]
    lines, screen, view = io.StringIO(), Console(file=io.StringIO(), width=100), RunView()
    plain = PlainDisplay(lines)
    for event in events:
        plain.show(event)
        view.apply(event)
        screen.print(draw_run(view, now_s=event.time_s))
    assert max(map(len, lines.getvalue().splitlines())) < 400
    write_report(run)
    assert "3 windows were not finite" in run.report.read_text(encoding="utf-8")
    write_tensorboard(run)
    told = tell(events, {}, "key")
    assert all(math.isfinite(point.value) for point in told.points)
    assert history_rows(told) or not told.points
    raw = {"version": 1, "data": {"source": {"kind": "sklearn", "dataset": "digits"}}}
    diagnose(events, validate_spec(raw), stage="train")


@pytest.mark.parametrize("value", EXTREMES)
def test_every_figure_has_words_for_it(value: float) -> None:
    texts = [format_value(value), format_metric("accuracy", value), format_duration(value), format_bytes(value)]
    assert all(0 < len(text) < 330 for text in texts)
