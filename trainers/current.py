"""A run's records without those of an earlier life: what was trained with other inputs, and what was done again.

Invariant: with several attempts at one training (kill and resume), every epoch and update is there once, in order.

Covered: stages that have started. Not covered: changes within a stage's same inputs (there are none).
"""

from __future__ import annotations

from collections.abc import Sequence

from cluster.telemetry.events import Diagnostics, EpochFinished, Record, StageStarted, TrainStep


def current_records(records: Sequence[Record]) -> list[Record]:
    """Records of the stages' present inputs: those after a start with the digest of the stage's last start."""
    last = {record.stage: record.digest for record in records if isinstance(record, StageStarted)}
    running: dict[str, str] = {}
    kept = []
    for record in records:
        stage = getattr(record, "stage", "")
        if isinstance(record, StageStarted):
            running[stage] = record.digest
        if running.get(stage) == last.get(stage):
            kept.append(record)
    return kept


def once_each(records: Sequence[Record]) -> list[Record]:
    """Of several records of one kind, stage and update the first: a resumed training makes the same numbers again."""
    seen: set[tuple[type, str, int]] = set()
    kept = []
    for record in records:
        if isinstance(record, TrainStep | EpochFinished | Diagnostics):
            key = (type(record), record.stage, record.update)
            if key in seen:
                continue
            seen.add(key)
        kept.append(record)
    return kept
