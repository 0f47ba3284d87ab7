"""What a run looks like at a moment: a fold of its events. Displays draw it, and draw nothing else.

Invariant: a pure consumer. The same records give the same view; a record that repeats or comes late never raises.

Covered: stages, progress, training figures, trials, messages, endpoint. Not covered: how it looks (progress.py,
plain.py, cluster/report).
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Any, Literal

from cluster.telemetry.events import (
    CheckpointWritten,
    EndpointReady,
    EpochFinished,
    Message,
    Progress,
    Record,
    RunFailed,
    RunFinished,
    RunStarted,
    StageFailed,
    StageFinished,
    StageStarted,
    TrainStep,
    TrialUpdated,
)

StageStatus = Literal["waiting", "running", "done", "reused", "skipped", "failed"]
SHARES: frozenset[str] = frozenset({"accuracy", "balanced_accuracy", "f1", "precision", "recall"})
"""Metrics that are shares of rows: shown as percentages."""
WHOLE_DIGITS_BELOW = 1e15  # a float64 holds every whole number below 2**53


@dataclass
class StageView:
    """One stage."""

    name: str
    status: StageStatus = "waiting"
    started_unix_s: float | None = None
    duration_s: float | None = None
    headline: str = ""
    progress: Progress | None = None
    step: TrainStep | None = None
    epochs: list[EpochFinished] = field(default_factory=list)
    trials: dict[str, TrialUpdated] = field(default_factory=dict)
    error: dict[str, Any] | None = None


@dataclass
class RunView:
    """One run, from its last `run_started` on."""

    run: str = ""
    started_unix_s: float | None = None
    last_unix_s: float | None = None
    stages: dict[str, StageView] = field(default_factory=dict)
    messages: list[Message] = field(default_factory=list)
    endpoint: EndpointReady | None = None
    summary: dict[str, Any] | None = None
    error: dict[str, Any] | None = None
    duration_s: float | None = None

    def apply(self, event: Record) -> None:
        """Take one record in."""
        self.last_unix_s = event.time_s
        if isinstance(event, RunStarted):
            self._start(event)
        elif isinstance(event, RunFinished):
            self.summary, self.duration_s = event.summary, event.duration_s
        elif isinstance(event, RunFailed):
            self.error = event.error
        elif isinstance(event, Message):
            self.messages.append(event)
        elif isinstance(event, EndpointReady):
            self.endpoint = event
        elif (name := getattr(event, "stage", None)) is not None:
            self._apply_to_stage(self.stages.setdefault(name, StageView(name)), event)

    @property
    def current(self) -> StageView | None:
        """The stage that runs, if one does."""
        return next((stage for stage in self.stages.values() if stage.status == "running"), None)

    @property
    def ended(self) -> bool:
        return self.summary is not None or self.error is not None

    def _start(self, event: RunStarted) -> None:
        """A resumed run starts over: the stages of the earlier attempt come again as reused."""
        self.run, self.started_unix_s = event.run, event.time_s
        self.stages = {name: StageView(name) for name in event.stages}
        self.messages, self.endpoint, self.summary, self.error, self.duration_s = [], None, None, None, None

    def _apply_to_stage(self, stage: StageView, event: Record) -> None:
        if isinstance(event, StageStarted):
            stage.status, stage.started_unix_s = "running", event.time_s
        elif isinstance(event, StageFinished):
            stage.status, stage.duration_s, stage.headline = event.status, event.duration_s, event.headline
        elif isinstance(event, StageFailed):
            stage.status, stage.error = "failed", event.error
        elif isinstance(event, Progress):
            stage.progress = event
        elif isinstance(event, TrainStep):
            stage.step = event
        elif isinstance(event, EpochFinished):
            stage.epochs.append(event)
        elif isinstance(event, TrialUpdated):
            stage.trials[event.trial] = event
        else:
            assert isinstance(event, CheckpointWritten) or hasattr(event, "stage")


def short_name(path: str) -> str:
    """Last part of a dotted path: how a searched value is called in a table."""
    return path.rsplit(".", 1)[-1]


def format_value(value: Any) -> str:
    """A figure for people: four significant digits and never less than the whole ones, thousands apart, no noise."""
    if isinstance(value, bool) or value is None:
        return str(value)
    if isinstance(value, int):
        return f"{value:,}"
    if isinstance(value, float):
        return _format_float(value)
    return str(value)


def _format_float(value: float) -> str:
    if not math.isfinite(value):
        return str(value)
    if abs(value) < WHOLE_DIGITS_BELOW and (value.is_integer() or abs(value) >= 1000):
        return f"{value:,.0f}"  # 99999.5 is not 1.000e+05, and not 100,000.0
    return f"{value:.2e}" if not 1e-3 <= abs(value) < 1000 else f"{value:.4g}"


def format_metric(name: str, value: float) -> str:
    """Shares as percentages, everything else in four digits."""
    if name.rsplit(".", 1)[-1].removeprefix("macro_") in SHARES:
        return f"{100 * value:.2f} %"
    return format_value(float(value))


def format_duration(seconds: float | None) -> str:
    """`0.3 s`, `42 s`, `3:07`, `1:02:03`."""
    if seconds is None:
        return ""
    if not math.isfinite(seconds):
        return "unknown"
    if seconds < 9.95:
        return f"{seconds:.1f} s"
    if seconds < 99.5:
        return f"{seconds:.0f} s"
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"


def format_bytes(size: float | None) -> str:
    """Bytes in the unit that fits, decimal: `76.3 kB`."""
    if size is None:
        return "unknown"
    for unit in ("B", "kB", "MB", "GB"):
        if abs(size) < 1000:
            return f"{size:.0f} {unit}" if unit == "B" else f"{size:.1f} {unit}"
        size /= 1000
    return f"{size:.1f} TB"


def counted(number: int, noun: str) -> str:
    """`1 replica`, `2 replicas`."""
    return f"{number:,} {noun}" if number == 1 else f"{number:,} {noun}s"
