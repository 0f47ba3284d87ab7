"""What a report says about a run, gathered from its events, stage records and files.

Invariant: reads only; whatever a run has not got to (or never had) is empty, and no part of a report needs another.

Covered: several attempts at one run (a resumed training is one curve). Not covered: how it looks (page.py).
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

from cluster.report.figures import can_be_drawn
from cluster.spec.resolve import ResolvedRun
from cluster.store.run_folder import RunFolder, StageRecord
from cluster.store.stage_facts import CompressFacts, EvaluateFacts, SearchFacts
from cluster.telemetry.current import current_records
from cluster.telemetry.events import (
    EpochFinished,
    Message,
    Record,
    RunFailed,
    TrainStep,
    TrialUpdated,
    read_events,
)
from cluster.telemetry.view import RunView


@dataclass(frozen=True)
class TrialRow:
    """One trial as the report shows it."""

    name: str
    values: dict[str, Any]
    state: str
    source: str = ""
    note: str = ""
    epochs: int | None = None
    value: float | None = None
    curve: dict[int, float] = field(default_factory=dict)


@dataclass(frozen=True)
class RunReport:
    """Everything the page draws."""

    name: str
    view: RunView
    records: dict[str, StageRecord]
    resolved: ResolvedRun | None
    steps: list[TrainStep]
    epochs: list[EpochFinished]
    trials: list[TrialRow]
    trial_metric: str
    best_trial: str | None
    trial_paths: list[str]
    """Searched paths in the order of the spec."""
    messages: list[Message]
    failure: RunFailed | None
    state: dict[str, Any]
    evidence: dict[str, Any]
    """Curves of the test rows and importance of the columns; empty before evaluate and in older runs."""

    @property
    def evaluated(self) -> EvaluateFacts:
        """Empty where the stage has not run; so are the other two."""
        return EvaluateFacts.of(self.records) or EvaluateFacts()

    @property
    def searched(self) -> SearchFacts:
        return SearchFacts.of(self.records) or SearchFacts()

    @property
    def compressed(self) -> CompressFacts:
        return CompressFacts.of(self.records) or CompressFacts()

    def details(self, stage: str) -> dict[str, Any]:
        record = self.records.get(stage)
        return record.details if record else {}


def gather(run: RunFolder, last: Record | None = None) -> RunReport:
    """Read a run's folder; `last` is a record that is about to be written."""
    events: list[Record] = [*read_events(run.events), *([last] if last else [])]
    view = RunView()
    for event in events:
        view.apply(event)
    records = run.records()
    training = [event for event in current_records(events) if getattr(event, "stage", "") == "train"]
    resolved = run.read_resolved()
    search = resolved.spec.search if resolved else None
    failure = next((event for event in reversed(events) if isinstance(event, RunFailed)), None)
    found = SearchFacts.of(records)
    best = found.best_trial if found else None
    trials = _trials(run, events, search.metric if search else "")
    searched = list(search.space) if search else []
    return RunReport(
        name=run.name,
        view=view,
        records=records,
        resolved=resolved,
        steps=by_update(event for event in training if isinstance(event, TrainStep)),
        epochs=by_epoch(event for event in training if isinstance(event, EpochFinished)),
        trials=trials,
        trial_paths=searched or list(dict.fromkeys(path for row in trials for path in row.values)),
        trial_metric=search.metric if search else "",
        best_trial=None if best is None else str(best),
        messages=[event for event in events if isinstance(event, Message) and event.level != "info"],
        failure=failure if view.error is not None else None,
        state=run.read_state(),
        evidence=_evidence(run),
    )


def by_update(steps: Iterable[TrainStep]) -> list[TrainStep]:
    """Ascending updates, the newest record of each: a resumed training records some of them twice."""
    return [step for _, step in sorted({step.update: step for step in steps}.items())]


def by_epoch(epochs: Iterable[EpochFinished]) -> list[EpochFinished]:
    return [epoch for _, epoch in sorted({epoch.epoch: epoch for epoch in epochs}.items())]


def _evidence(run: RunFolder) -> dict[str, Any]:
    path = run.stage("evaluate") / "evidence.json"
    found = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
    return found if isinstance(found, dict) else {}


def _trials(run: RunFolder, events: Sequence[Record], metric: str) -> list[TrialRow]:
    """From the finished search's table, else from the events of an unfinished one."""
    path = run.stage("search") / "trials.json"
    if path.exists():
        return [_row(item) for item in json.loads(path.read_text(encoding="utf-8"))]
    rows: dict[str, TrialRow] = {}
    for event in current_records(events):
        if isinstance(event, TrialUpdated) and event.stage == "search":
            rows[event.trial] = _row_of_event(event, metric, rows.get(event.trial))
    return list(rows.values())


def _row(item: dict[str, Any]) -> TrialRow:
    return TrialRow(
        name=str(item["trial"]),
        values=item["values"],
        state=item["state"],
        source=item.get("source", ""),
        note=item.get("note", ""),
        epochs=item.get("epochs"),
        value=_drawn(item.get("value")),
        curve={int(epoch): value for epoch, value in item.get("reports", {}).items() if can_be_drawn(value)},
    )


def _row_of_event(event: TrialUpdated, metric: str, before: TrialRow | None) -> TrialRow:
    curve = dict(before.curve) if before else {}
    epoch = int(event.metrics.get("epoch", 0))
    value = _drawn(event.metrics.get(metric))
    if value is not None:
        curve[epoch] = value
    return TrialRow(
        name=event.trial,
        values=event.parameters,
        state=event.state,
        note=event.note,
        epochs=epoch or None,
        value=value,
        curve=curve,
    )


def _drawn(value: float | None) -> float | None:
    """A trial's value; one that cannot be drawn is none, and its note says what it was."""
    return value if value is not None and can_be_drawn(value) else None
