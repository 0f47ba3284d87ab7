"""The event stream of a run: typed records, one JSON object a line in `events.jsonl`.

It is the only source for the progress display, the log, TensorBoard and the report: whoever wants to show
something emits a record here, and whoever shows something reads records from here.

Invariant: a record is written with one `write` of one line to a file opened for append, so that records of
several processes never mix (POSIX makes appends of this size atomic on local file systems), and a reader that
meets a torn last line waits for the rest.

Covered: record types, append, read, follow. Not covered: moving records between hosts (cluster/runtime/channel.py).
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Annotated, Any, Literal, Protocol

from pydantic import BaseModel, ConfigDict, Field, TypeAdapter

FOLLOW_POLL_S = 0.1  # a person does not see a tenth of a second


class Record(BaseModel):
    """Base of every record. `time_s` is Unix time in seconds, set when the record is made."""

    model_config = ConfigDict(extra="forbid", frozen=True)
    time_s: float = Field(default_factory=time.time)


class RunStarted(Record):
    kind: Literal["run_started"] = "run_started"
    run: str
    stages: list[str]
    pid: int
    host: str
    address: str | None = None
    """Ray address of a cluster that was there before, or None for a private local Ray."""


class RunFinished(Record):
    kind: Literal["run_finished"] = "run_finished"
    run: str
    duration_s: float
    summary: dict[str, Any] = {}


class RunFailed(Record):
    kind: Literal["run_failed"] = "run_failed"
    run: str
    error: dict[str, Any]
    """`MantaError.to_dict()`."""
    traceback: str = ""


class StageStarted(Record):
    kind: Literal["stage_started"] = "stage_started"
    stage: str
    digest: str


class StageFinished(Record):
    kind: Literal["stage_finished"] = "stage_finished"
    stage: str
    status: Literal["done", "reused", "skipped"]
    duration_s: float
    headline: str = ""
    """One line for the display: what this stage found or made."""


class StageFailed(Record):
    kind: Literal["stage_failed"] = "stage_failed"
    stage: str
    error: dict[str, Any]


class Progress(Record):
    """How far a stage is. `done` of `total` units; `text` says what is going on."""

    kind: Literal["progress"] = "progress"
    stage: str
    done: float
    total: float | None = None
    unit: str = ""
    text: str = ""


class TrainStep(Record):
    """Training progress at a logging interval: means over the window since the last one, over all workers."""

    kind: Literal["train_step"] = "train_step"
    stage: str
    epoch: int
    epochs: int
    update: int
    updates: int
    loss: float
    learning_rate: float
    samples_per_s: float
    eta_s: float | None = None
    extra: dict[str, float] = {}
    """gradient_norm, data_wait_share, memory_bytes, …"""


class UpdateSkipped(Record):
    """A window whose gradient was not finite: it moved nothing."""

    kind: Literal["update_skipped"] = "update_skipped"
    stage: str
    epoch: int
    window: int
    update: int
    rows: list[int] = []
    """Rows of the train split in the window that hold a NaN or an infinity, the first few; empty where all are finite:
    then the model made it."""
    num_rows: int = 0
    """How many there are."""


class EpochFinished(Record):
    """Metrics after an epoch, already reduced over workers. Names are `split.metric`."""

    kind: Literal["epoch_finished"] = "epoch_finished"
    stage: str
    epoch: int
    epochs: int
    update: int
    metrics: dict[str, float]


class CheckpointWritten(Record):
    kind: Literal["checkpoint_written"] = "checkpoint_written"
    stage: str
    path: str
    update: int
    best: bool = False


class TrialUpdated(Record):
    """One search or compression trial. `state` is what a table shows."""

    kind: Literal["trial_updated"] = "trial_updated"
    stage: str
    trial: str
    state: Literal["pending", "running", "done", "stopped", "failed", "rejected", "accepted"]
    parameters: dict[str, Any]
    metrics: dict[str, float] = {}
    note: str = ""


class Diagnostics(Record):
    """Per-layer numbers at a diagnostics interval."""

    kind: Literal["diagnostics"] = "diagnostics"
    stage: str
    update: int
    values: dict[str, dict[str, float]]
    """layer -> {gradient_norm, update_ratio, …}"""


class EndpointReady(Record):
    kind: Literal["endpoint_ready"] = "endpoint_ready"
    name: str
    url: str
    version: str
    replicas: int


class EndpointStopped(Record):
    kind: Literal["endpoint_stopped"] = "endpoint_stopped"
    name: str


class Message(Record):
    """A line for people: a warning, a finding, a retry."""

    kind: Literal["message"] = "message"
    level: Literal["info", "warning", "error"] = "info"
    stage: str = ""
    text: str


Event = Annotated[
    RunStarted
    | RunFinished
    | RunFailed
    | StageStarted
    | UpdateSkipped
    | StageFinished
    | StageFailed
    | Progress
    | TrainStep
    | EpochFinished
    | CheckpointWritten
    | TrialUpdated
    | Diagnostics
    | EndpointReady
    | EndpointStopped
    | Message,
    Field(discriminator="kind"),
]
_EVENT: TypeAdapter[Event] = TypeAdapter(Event)


class EventSink(Protocol):
    """Where records go. `emit` never blocks on a reader and never raises for a full pipe."""

    def emit(self, event: Record) -> None: ...


class FileSink:
    """Appends records to a file of this host. Picklable: the file is opened anew in another process."""

    def __init__(self, path: Path) -> None:
        self.path = Path(path)

    def emit(self, event: Record) -> None:
        append_line(self.path, encode(event))


class ListSink:
    """Keeps records in memory: for tests and for callers without a run folder."""

    def __init__(self) -> None:
        self.events: list[Record] = []

    def emit(self, event: Record) -> None:
        self.events.append(event)


class NullSink:
    """Drops records: of a process whose records another one emits."""

    def emit(self, event: Record) -> None:
        """Drop it."""


def encode(event: Record) -> str:
    """One JSON line without its newline. NaN and infinity become strings, so that the line stays JSON."""
    return json.dumps(_finite(event.model_dump(mode="python")), separators=(",", ":"), default=str)


def decode(line: str) -> Event:
    """The record of one line. Raises ValueError for a line that is not a record."""
    return _EVENT.validate_python(json.loads(line))


def append_line(path: Path, line: str) -> None:
    """Append one line with one write."""
    fd = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o644)
    try:
        os.write(fd, (line + "\n").encode())
    finally:
        os.close(fd)


def read_events(path: Path) -> list[Event]:
    """All whole records of a file; a torn last line is left out; a missing file has no records."""
    if not path.exists():
        return []
    text = path.read_text(encoding="utf-8", errors="replace")
    return [decode(line) for line in text.splitlines(keepends=True) if line.endswith("\n")]


def follow_events(path: Path, stop: Callable[[], bool], *, offset_bytes: int = 0) -> Iterator[Event]:
    """Yield records as they are written, until `stop()` is true and the file has been read to its end.

    `offset_bytes` skips what was there before. Blocks between records.
    """
    buffer = b""
    while True:
        stopping = stop()
        if path.exists():
            with path.open("rb") as file:
                file.seek(offset_bytes)
                chunk = file.read()
            offset_bytes += len(chunk)
            *lines, buffer = (buffer + chunk).split(b"\n")
            for line in lines:
                yield decode(line.decode("utf-8", errors="replace"))
        if stopping:
            return
        time.sleep(FOLLOW_POLL_S)


def _finite(value: Any) -> Any:
    if isinstance(value, float) and (value != value or value in (float("inf"), float("-inf"))):
        return str(value)
    if isinstance(value, dict):
        return {key: _finite(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(item) for item in value]
    return value
