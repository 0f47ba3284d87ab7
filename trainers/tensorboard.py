"""A run's events as TensorBoard files: `python -m trainers.tensorboard RUN_DIR [--follow]`, or `write_tensorboard`.

    tensorboard/train/  tensorboard/<stage>/…  tensorboard/search/trial-0/  …

Invariant: made from `events.jsonl` alone, with the wall times of the records, so that files written while a run goes
on and files written afterwards show the same curves; a record that has no number in it is left out. Written when a run
has ended, a training that was resumed shows each update once, and of one whose inputs have changed the new one alone is
shown.

Covered: training steps, epochs, trials, diagnostics, messages as text. Not covered: graphs, images, embeddings.
"""

from __future__ import annotations

import argparse
import shutil
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from cluster.command import run_main
from cluster.store.run_folder import RunFolder
from cluster.telemetry.current import current_records, once_each
from cluster.telemetry.events import (
    Diagnostics,
    EpochFinished,
    Message,
    Record,
    RunFailed,
    RunFinished,
    TrainStep,
    TrialUpdated,
    follow_events,
    read_events,
)

FLOAT32_MAX = 3.4028234663852886e38  # a scalar of TensorBoard is a float32


class TensorBoardWriter:
    """Turns records into event files under `folder`, one subfolder a stage or trial. Not thread-safe."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._writers: dict[str, Any] = {}

    def write(self, event: Record) -> None:
        """Add what a record has to show."""
        if isinstance(event, TrainStep):
            values = {
                "loss": event.loss,
                "learning_rate": event.learning_rate,
                "samples_per_s": event.samples_per_s,
                **event.extra,
            }
            self._scalars(event.stage, {f"step/{key}": value for key, value in values.items()}, event.update, event)
        elif isinstance(event, EpochFinished):
            values = {f"epoch/{key}": value for key, value in event.metrics.items()}
            self._scalars(event.stage, values, event.epoch, event)
        elif isinstance(event, TrialUpdated):
            self._trial(event)
        elif isinstance(event, Diagnostics):
            for layer, numbers in event.values.items():
                values = {f"layer/{layer}/{key}": value for key, value in numbers.items()}
                self._scalars(event.stage, values, event.update, event)
        elif isinstance(event, Message) and event.level != "info":
            self._text(event.stage or "run", f"{event.level}s", event.text, event)

    def close(self) -> None:
        """Flush and close every file."""
        for writer in self._writers.values():
            writer.close()
        self._writers.clear()

    def flush(self) -> None:
        for writer in self._writers.values():
            writer.flush()

    def _trial(self, event: TrialUpdated) -> None:
        """One curve a trial; its values are scalars at step 0, so that they stand beside the curve."""
        folder = f"{event.stage}/trial-{event.trial}"
        values = {f"trial/{key}": value for key, value in event.metrics.items() if key != "epoch"}
        self._scalars(folder, values, int(event.metrics.get("epoch", 0)), event)
        if event.state not in ("pending", "running"):
            numbers = {f"values/{key}": value for key, value in event.parameters.items() if _is_number(value)}
            self._scalars(folder, numbers, 0, event)

    def _scalars(self, folder: str, values: dict[str, float], step: int, event: Record) -> None:
        from tensorboard.compat.proto.event_pb2 import Event
        from tensorboard.compat.proto.summary_pb2 import Summary

        found = [
            Summary.Value(tag=tag, simple_value=float(value))
            for tag, value in values.items()
            if abs(float(value)) <= FLOAT32_MAX  # false of NaN
        ]
        if found:
            self._writer(folder).add_event(Event(wall_time=event.time_s, step=step, summary=Summary(value=found)))

    def _text(self, folder: str, tag: str, text: str, event: Record) -> None:
        from tensorboard.compat.proto.event_pb2 import Event
        from tensorboard.compat.proto.summary_pb2 import Summary, SummaryMetadata
        from tensorboard.compat.proto.tensor_pb2 import TensorProto
        from tensorboard.compat.proto.tensor_shape_pb2 import TensorShapeProto

        tensor = TensorProto(
            dtype="DT_STRING",
            string_val=[text.encode()],
            tensor_shape=TensorShapeProto(dim=[TensorShapeProto.Dim(size=1)]),
        )
        metadata = SummaryMetadata(plugin_data=SummaryMetadata.PluginData(plugin_name="text"))
        value = Summary.Value(tag=f"{tag}/text_summary", tensor=tensor, metadata=metadata)
        step = int(event.time_s)  # messages have no update: seconds keep them apart
        self._writer(folder).add_event(Event(wall_time=event.time_s, step=step, summary=Summary(value=[value])))

    def _writer(self, folder: str) -> Any:
        from tensorboard.summary.writer.event_file_writer import EventFileWriter

        if folder not in self._writers:
            self._writers[folder] = EventFileWriter(str(self._folder / folder))
        return self._writers[folder]


def write_tensorboard(run: RunFolder) -> Path:
    """Make `tensorboard/` anew from all events of a run. Returns its path. Called by the driver at the end."""
    shutil.rmtree(run.tensorboard, ignore_errors=True)
    return _write(run, once_each(current_records(read_events(run.events))))


def follow_tensorboard(run: RunFolder) -> Path:
    """Write while a run goes on; returns when it has ended. Blocks."""
    shutil.rmtree(run.tensorboard, ignore_errors=True)
    ended: list[Record] = []

    def events() -> Iterable[Record]:
        for event in follow_events(run.events, lambda: bool(ended)):
            yield event
            if isinstance(event, RunFinished | RunFailed):
                ended.append(event)

    return _write(run, events(), live=True)


def _write(run: RunFolder, events: Iterable[Record], *, live: bool = False) -> Path:
    writer = TensorBoardWriter(run.tensorboard)
    try:
        for event in events:
            writer.write(event)
            if live and not isinstance(event, TrainStep):
                writer.flush()
    finally:
        writer.close()
    return run.tensorboard


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def main(arguments: list[str] | None = None) -> int:
    """Command line. Returns the exit code."""
    return run_main(_write_or_follow, arguments)


def _write_or_follow(arguments: list[str]) -> int:
    parser = argparse.ArgumentParser(prog="python -m trainers.tensorboard", description=__doc__)
    parser.add_argument("run_dir", type=Path)
    parser.add_argument("--follow", action="store_true", help="write while the run goes on, until it ends")
    options = parser.parse_args(arguments)
    run = RunFolder(options.run_dir.resolve())
    (follow_tensorboard if options.follow else write_tensorboard)(run)
    return 0


if __name__ == "__main__":
    sys.exit(main())
