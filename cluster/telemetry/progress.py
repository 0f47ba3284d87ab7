"""The live display on a terminal (rich): stages with ticks and times, training figures, trials, messages.

Invariant: a pure consumer of records; it draws `RunView` and nothing else. In a pipe, in CI and with `--json` the
plain display takes its place (`make_display` decides, by the stream).

Covered: widths from 60 columns up, colors off with NO_COLOR. Not covered: scrolling back inside a run (the log and
the report have everything).
"""

from __future__ import annotations

import math
import sys
import textwrap
import time
from collections.abc import Sequence
from typing import Any, Protocol

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.padding import Padding
from rich.progress_bar import ProgressBar
from rich.spinner import Spinner
from rich.table import Table
from rich.text import Text

from cluster.telemetry.events import Message, Record, TrialUpdated
from cluster.telemetry.final import final_commands, final_rows
from cluster.telemetry.plain import PlainDisplay
from cluster.telemetry.view import (
    RunView,
    StageView,
    format_duration,
    format_metric,
    format_value,
    short_name,
)

REFRESH_PER_S = 8  # smooth for the eye, a percent of one core
TRIALS_SHOWN = 12  # more would push the stages off a terminal of 40 lines
MESSAGES_SHOWN = 4
BAR_WIDTH = 28
HEADER_WIDTH = 10  # as wide as the figures below it
WIDE = 90  # columns from which a trial's origin has room beside its state
ACCENT = "cyan"
MARKS = {
    "waiting": ("·", "bright_black"),
    "done": ("✓", "green"),
    "reused": ("✓", "bright_black"),
    "skipped": ("–", "bright_black"),
    "failed": ("✗", "red"),
}
TRIAL_STYLES = {
    "running": ACCENT,
    "done": "green",
    "stopped": "bright_black",
    "rejected": "yellow",
    "accepted": "green",
    "failed": "red",
    "pending": "bright_black",
}


class Display(Protocol):
    """Shows a run while it happens. `close` leaves the last picture on the screen."""

    def show(self, event: Record) -> None: ...

    def note(self, text: str) -> None: ...

    def close(self) -> None: ...


def make_display(run: Any = None, *, as_json: bool = False, console: Console | None = None) -> Display:
    """The display that fits: live on a terminal, plain lines elsewhere, plain lines on stderr with `--json`."""
    if as_json:
        return PlainDisplay(sys.stderr)
    console = console or Console(highlight=False)
    if not console.is_terminal or console.is_dumb_terminal:
        return PlainDisplay(sys.stdout)
    return LiveDisplay(console)


class LiveDisplay:
    """Redraws the view in place."""

    def __init__(self, console: Console) -> None:
        self._console = console
        self.view = RunView()
        self._notes: list[str] = []
        self._spinner = Spinner("dots", style=ACCENT)
        self._live = Live(
            console=console,
            get_renderable=self._draw,
            refresh_per_second=REFRESH_PER_S,
            vertical_overflow="visible",
        )
        self._live.start()

    def show(self, event: Record) -> None:
        """Take a record in; the screen follows within a tenth of a second."""
        self.view.apply(event)

    def note(self, text: str) -> None:
        """A line that belongs to no event (`Stopping …`)."""
        self._notes.append(text)

    def close(self) -> None:
        """Draw the last picture, then the final table or the error."""
        self._live.stop()
        for part in final_parts(self.view):
            self._console.print(part)

    def _draw(self) -> RenderableType:
        return draw_run(
            self.view, notes=self._notes, now_s=time.time(), spinner=self._spinner, width=self._console.width
        )


def draw_run(
    view: RunView, *, notes: Sequence[str] = (), now_s: float, spinner: RenderableType = "●", width: int = 100
) -> RenderableType:
    """The whole picture at a moment. Pure: the same view and time give the same picture."""
    elapsed = None if view.started_unix_s is None else now_s - view.started_unix_s
    took = view.duration_s if view.duration_s is not None else elapsed
    head = Table.grid(expand=True, padding=0)
    head.add_column(ratio=1)
    head.add_column(justify="right", no_wrap=True)
    head.add_row(
        Text.assemble(("manta ", f"bold {ACCENT}"), (view.run, "bold")), Text(format_duration(took), "bright_black")
    )
    parts: list[RenderableType] = [Text(), head, Text()]
    for stage in view.stages.values():
        parts.append(_stage_line(stage, now_s, spinner))
        if stage.status == "running":
            parts += [Padding(part, (0, 0, 0, 4)) for part in _stage_details(stage, width - 4)]
    messages = [message for message in view.messages if _still_matters(message, view)][-MESSAGES_SHOWN:]
    if messages or notes:
        parts.append(Text())
    parts += [_message_line(message) for message in messages]
    parts += [Text(note, "yellow") for note in notes]
    return Padding(Group(*parts, Text()), (0, 1))


def final_parts(view: RunView) -> list[RenderableType]:
    """What stays below the picture: the table of figures and the next commands, or the error."""
    if view.summary is not None:
        return [final_table(view.summary, view.duration_s)]
    if view.error is not None:
        return [error_text(view.error), Text()]
    return []


def final_table(summary: dict[str, Any], duration_s: float | None = None) -> RenderableType:
    """Accuracy, size before and after, latency, where things lie, what to type next."""
    table = Table.grid(padding=(0, 3, 0, 0))
    table.add_column(style="bright_black", no_wrap=True)
    table.add_column(overflow="fold")
    for name, value in final_rows(summary, duration_s):
        table.add_row(name, Text(value, "bold" if name.startswith(("test", "latency", "model")) else ""))
    parts: list[RenderableType] = [table]
    for purpose, command in final_commands(summary):
        parts += [Text(), Text(purpose, "bright_black"), Text("  " + command, ACCENT, overflow="fold")]
    return Padding(Group(*parts, Text()), (0, 1, 0, 3))


def error_text(error: dict[str, Any]) -> Text:
    """An error as its sentences, the remedy on a line of its own."""
    text = Text.assemble((" Error ", "bold red"), f"{error.get('attempted', '')}: {error.get('found', '')}")
    for key, style in (("rule", ""), ("remedy", "green")):
        if error.get(key):
            text.append(f"\n   {error[key]}", style)
    return text


def _stage_line(stage: StageView, now_s: float, spinner: RenderableType) -> RenderableType:
    line = Table.grid(expand=True, padding=(0, 1, 0, 0))
    line.add_column(width=1)
    line.add_column(width=9, no_wrap=True)
    line.add_column(ratio=1, overflow="fold")
    line.add_column(justify="right", no_wrap=True, min_width=7)
    mark: RenderableType = spinner
    if stage.status != "running":
        mark = Text(*MARKS[stage.status])
    took, style = stage.duration_s, ""
    if stage.status == "running" and stage.started_unix_s is not None:
        took, style = max(0.0, now_s - stage.started_unix_s), "bold"
    if stage.status in ("waiting", "reused", "skipped"):
        style = "bright_black"
    headline = stage.headline
    if stage.status == "running" and stage.progress and stage.progress.text:
        headline = stage.progress.text
    if stage.status in ("reused", "skipped"):
        headline = f"{stage.status} · {headline}" if headline else stage.status
    shown = "" if stage.status in ("waiting", "skipped") else format_duration(took)
    line.add_row(
        mark,
        Text(stage.name, style),
        Text(headline, "bright_black" if style == "bright_black" else ""),
        Text(shown, "bright_black"),
    )
    return line


def _stage_details(stage: StageView, width: int) -> list[RenderableType]:
    """What a running stage is doing: a bar, training figures, trials."""
    parts: list[RenderableType] = []
    if stage.step is not None or stage.epochs:
        parts += _training(stage)
    elif stage.progress is not None and stage.progress.total:
        done, total = stage.progress.done, stage.progress.total
        unit = f" {stage.progress.unit}" if stage.progress.unit else ""
        parts.append(_bar(done, total, f"{format_value(done)} of {format_value(total)}{unit}"))
    if stage.trials:
        parts.append(_trial_table(list(stage.trials.values()), width))
    return parts


def _training(stage: StageView) -> list[RenderableType]:
    parts: list[RenderableType] = []
    step = stage.step
    if step is not None:
        eta = f" · {format_duration(step.eta_s)} left" if step.eta_s is not None else ""
        parts.append(_bar(step.update, step.updates, f"epoch {step.epoch}/{step.epochs}{eta}"))
        figures = {
            "loss": format_value(step.loss),
            "learning rate": format_value(step.learning_rate),
            "samples/s": format_value(step.samples_per_s),
        }
        parts.append(_figures(figures))
    if stage.epochs:
        last = stage.epochs[-1]
        names = sorted(name for name in last.metrics if name.startswith("validation."))
        shown = {name.replace(".", " "): format_metric(name, last.metrics[name]) for name in names[:3]}
        if shown:
            parts.append(_figures(shown))
    return parts


def _bar(done: float, total: float, text: str) -> RenderableType:
    row = Table.grid(padding=(0, 2, 0, 0))
    row.add_column(width=BAR_WIDTH)
    row.add_column(no_wrap=True)
    bar = ProgressBar(
        total=total, completed=min(done, total), width=BAR_WIDTH, complete_style=ACCENT, finished_style="green"
    )
    row.add_row(bar, Text(text))
    return row


def _figures(figures: dict[str, str]) -> Text:
    text = Text()
    for index, (name, value) in enumerate(figures.items()):
        text.append("   " if index else "").append(f"{name} ", "bright_black").append(value)
    return text


def _trial_table(trials: list[TrialUpdated], width: int) -> RenderableType:
    """The newest trials, one a line; columns that do not fit a narrow terminal are left out."""
    paths = list(dict.fromkeys(path for trial in trials for path in trial.parameters))
    metrics = list(dict.fromkeys(name for trial in trials for name in trial.metrics if "." in name))
    metrics = [name for name in metrics if not name.startswith("train.")][: 1 if width < 76 else 2]
    best = _best_trial(trials, metrics[0]) if metrics else None
    table = Table(box=None, padding=(0, 2, 0, 0), header_style="bright_black", pad_edge=False)
    for name in ("trial", *(short_name(path) for path in paths), *metrics, "epoch"):
        header = _header(name)
        least = max(map(len, header.split("\n")))
        table.add_column(header, justify="right", no_wrap=True, vertical="bottom", min_width=least)
    table.add_column("", no_wrap=True, overflow="ellipsis", ratio=1)
    for trial in trials[-TRIALS_SHOWN:]:
        style = "bold" if trial.trial == best else ""
        state = Text(trial.state, TRIAL_STYLES[trial.state])
        if trial.note and (width >= WIDE or trial.state in ("rejected", "failed")):
            state.append(f" {trial.note}", "bright_black")
        table.add_row(
            trial.trial,
            *(format_value(trial.parameters.get(path)) for path in paths),
            *(format_metric(name, trial.metrics[name]) if name in trial.metrics else "" for name in metrics),
            format_value(trial.metrics["epoch"]) if "epoch" in trial.metrics else "",
            state,
            style=style,
        )
    return Padding(table, (1, 0))


def _header(name: str) -> str:
    """A dotted or underscored name in lines short enough for a column of figures."""
    return "\n".join(textwrap.wrap(name.replace("_", " ").replace(".", " "), HEADER_WIDTH))


def _best_trial(trials: list[TrialUpdated], metric: str) -> str | None:
    lower = metric.endswith(("loss", "error", "mae", "mse", "rmse"))
    known = [(value, trial.trial) for trial in trials if math.isfinite(value := trial.metrics.get(metric, math.nan))]
    if not known:
        return None
    return (min if lower else max)(known)[1]


def _still_matters(message: Message, view: RunView) -> bool:
    """Information belongs to the moment; warnings and errors stay."""
    current = view.current
    return message.level != "info" or (current is not None and message.stage == current.name)


def _message_line(message: Message) -> Text:
    style = {"info": "bright_black", "warning": "yellow", "error": "red"}[message.level]
    mark = {"info": "·", "warning": "!", "error": "✗"}[message.level]
    return Text(f"{mark} {message.text}", style)
