"""A run's records without those of an earlier life: what was trained with other inputs, and what was done again.

Invariant: with several attempts at one training (kill and resume), every epoch and update is there once, in order.

Covered: stages that have started. Not covered: changes within a stage's same inputs (there are none).
"""

from __future__ import annotations

from collections.abc import Sequence

from cluster.telemetry.events import Diagnostics, EpochFinished, Record, StageStarted, TrainStep, UpdateSkipped


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
    """Without what a later attempt at a stage has made again: the same numbers at the same update.

    Within one attempt nothing is left out: compression trains several networks in one stage.
    """
    attempts: dict[str, int] = {}
    first: dict[tuple[type, str, int], int] = {}
    kept = []
    for record in records:
        if isinstance(record, StageStarted):
            attempts[record.stage] = attempts.get(record.stage, 0) + 1
        elif isinstance(record, TrainStep | EpochFinished | Diagnostics | UpdateSkipped):
            place = record.epoch if isinstance(record, EpochFinished) else record.update
            attempt = attempts.get(record.stage, 0)
            if first.setdefault((type(record), record.stage, place), attempt) != attempt:
                continue
        kept.append(record)
    return kept
