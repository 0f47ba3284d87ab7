"""The display for a pipe, a file or CI: one line a stage, an epoch, a trial's end, a message. No control characters.

Invariant: a line is written whole and at once, so that a reader of the pipe sees the run live; the number of lines
grows with epochs and trials, never with steps.
"""

from __future__ import annotations

import sys
from typing import TextIO

from cluster.telemetry.events import (
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
    TrialUpdated,
)
from cluster.telemetry.final import final_lines
from cluster.telemetry.view import RunView, counted, format_duration, format_metric, format_value, short_name

STAGE_WIDTH = 9  # of `calibrate`, longer than any stage's name today


class PlainDisplay:
    """Writes lines to a stream, and a run's error to stderr, where every verb's error goes."""

    def __init__(self, stream: TextIO | None = None) -> None:
        self._stream = stream or sys.stdout
        self._view = RunView()
        self._said = ""

    def show(self, event: Record) -> None:
        """Write the event's line, if it has one."""
        self._view.apply(event)
        line = self._line(event)
        if line:
            elapsed = event.time_s - (self._view.started_unix_s or event.time_s)
            self._write(f"[{elapsed:7.1f}s] {line}")
        if isinstance(event, RunFailed):
            self._stream.flush()
            sys.stderr.write(f"Error: {event.error.get('message', '')}\n")
            sys.stderr.flush()
        if isinstance(event, RunFinished):
            self._write("\n" + "\n".join(final_lines(event.summary, event.duration_s)))

    def note(self, text: str) -> None:
        """A line that belongs to no event."""
        self._write(text)

    def close(self) -> None:
        self._stream.flush()

    def _write(self, text: str) -> None:
        self._stream.write(text + "\n")
        self._stream.flush()

    def _line(self, event: Record) -> str:
        if isinstance(event, RunStarted):
            where = f" on {event.address}" if event.address else ""
            return f"run {event.run}{where}: {', '.join(event.stages)}"
        if isinstance(event, StageStarted):
            return f"{event.stage:<{STAGE_WIDTH}} starts"
        if isinstance(event, StageFinished):
            took = f" in {format_duration(event.duration_s)}" if event.status == "done" else ""
            return f"{event.stage:<{STAGE_WIDTH}} {event.status}{took}" + (
                f": {event.headline}" if event.headline else ""
            )
        if isinstance(event, StageFailed):
            return f"{event.stage:<{STAGE_WIDTH}} failed"
        if isinstance(event, EpochFinished):
            figures = ", ".join(f"{key} {format_metric(key, value)}" for key, value in sorted(event.metrics.items()))
            return f"{event.stage:<{STAGE_WIDTH}} epoch {event.epoch}/{event.epochs}: {figures}"
        if isinstance(event, TrialUpdated):
            return self._trial(event)
        if isinstance(event, Progress):
            return self._waiting(event)
        if isinstance(event, EndpointReady):
            return f"endpoint {event.name} answers at {event.url} ({counted(event.replicas, 'replica')})"
        if isinstance(event, Message):
            return f"{event.level}: {event.text}"
        return ""

    def _waiting(self, event: Progress) -> str:
        """What a stage is at, where it counts nothing; once."""
        said, self._said = self._said, event.text or self._said
        new = event.total is None and event.text and event.text != said
        return f"{event.stage:<{STAGE_WIDTH}} {event.text}" if new else ""

    def _trial(self, event: TrialUpdated) -> str:
        if event.state in ("pending", "running"):
            return ""
        values = ", ".join(f"{short_name(key)} {format_value(value)}" for key, value in event.parameters.items())
        figures = ", ".join(f"{key} {format_metric(key, value)}" for key, value in event.metrics.items() if "." in key)
        note = f" ({event.note})" if event.note else ""
        return f"{event.stage:<{STAGE_WIDTH}} trial {event.trial} {event.state}: {values} -> {figures or '-'}{note}"
