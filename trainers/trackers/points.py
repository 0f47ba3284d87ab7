"""A run's records as points of curves: what every tracker is given.

Invariant: a pure function of the records, and the same points in the same order however often a run was interrupted:
of several records of one curve and step the first counts (a resumed training makes the same numbers again), and
records of a training whose inputs have changed since do not. So sending a run again adds nothing.

Covered: training steps, epochs, trials, diagnostics, final metrics. Not covered: values that are not finite, which no
tracker can plot: they are counted.
"""

from __future__ import annotations

import hashlib
import json
import math
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from cluster.store.run_folder import StageRecord
from cluster.telemetry.current import current_records
from cluster.telemetry.events import Diagnostics, EpochFinished, Record, StageStarted, TrainStep, TrialUpdated

UNUSUAL = re.compile(r"[^\w./ :-]")  # characters that MLflow refuses in names
FINAL_STAGES = ("evaluate", "predict")


@dataclass(frozen=True)
class Point:
    """One value of one curve."""

    name: str
    """`stage/curve`."""
    step: int
    """Updates made; of a search's trial its epoch."""
    value: float
    time_s: float


@dataclass(frozen=True)
class Story:
    """What a run has to tell a tracker."""

    points: tuple[Point, ...]
    left_out: int
    """Values that are not finite."""
    key: str
    """The same for every attempt at one training; another one when what is trained has changed."""


def tell(records: Sequence[Record], stages: Mapping[str, StageRecord], run_key: str) -> Story:
    """The whole story of a run."""
    current = current_records(records)
    digests = [record.digest for record in records if isinstance(record, StageStarted) and record.stage == "train"]
    key = hashlib.sha256(f"{run_key} {digests[-1] if digests else ''}".encode()).hexdigest()[:20]
    points = [*_points_of(current), *_final(stages, current)]
    finite = [point for point in points if math.isfinite(point.value)]
    unique = {(point.name, point.step): point for point in reversed(finite)}  # the first of each
    ordered = [point for point in finite if unique[point.name, point.step] is point]
    return Story(tuple(ordered), len(points) - len(finite), key)


def flat_spec(spec: Mapping[str, Any], prefix: str = "") -> dict[str, str]:
    """Dotted path -> value as text, of a nested spec."""
    found: dict[str, str] = {}
    for key, value in spec.items():
        path = f"{prefix}{key}"
        if isinstance(value, Mapping) and value:
            found |= flat_spec(value, f"{path}.")
        else:
            found[UNUSUAL.sub("_", path)] = value if isinstance(value, str) else json.dumps(value, default=str)
    return found


def _points_of(records: Iterable[Record]) -> Iterable[Point]:
    for record in records:
        if isinstance(record, TrainStep):
            values = {"loss": record.loss, "learning_rate": record.learning_rate, "samples_per_s": record.samples_per_s}
            yield from _points(record.stage, {**values, **record.extra}, record.update, record)
        elif isinstance(record, EpochFinished):
            yield from _points(record.stage, {**record.metrics, "epoch": record.epoch}, record.update, record)
        elif isinstance(record, TrialUpdated):
            values = {key: value for key, value in record.metrics.items() if key != "epoch"}
            step = int(record.metrics.get("epoch", 0))
            yield from _points(f"{record.stage}/trial-{record.trial}", values, step, record)
        elif isinstance(record, Diagnostics):
            for layer, numbers in record.values.items():
                yield from _points(f"{record.stage}/layer/{layer}", numbers, record.update, record)


def _final(stages: Mapping[str, StageRecord], records: Sequence[Record]) -> Iterable[Point]:
    """Numbers of finished stages, at the last update."""
    updates = [record.update for record in records if isinstance(record, TrainStep | EpochFinished)]
    for stage in FINAL_STAGES:
        if record := stages.get(stage):
            facts = record.facts.get("metrics", record.facts)
            numbers = {key: value for key, value in facts.items() if isinstance(value, int | float)}
            for key, value in numbers.items():
                yield Point(f"{stage}/{key}", max(updates, default=0), float(value), record.started_unix_s)


def _points(prefix: str, values: Mapping[str, float], step: int, record: Record) -> Iterable[Point]:
    for key, value in values.items():
        yield Point(UNUSUAL.sub("_", f"{prefix}/{key}"), step, float(value), record.time_s)
