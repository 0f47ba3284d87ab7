"""The search's own memory: one JSON line for each trial proposed, each epoch reported, each trial ended.

Tune's experiment state drops the scheduler's rungs and is written every ten seconds (Ray 2.60); this journal is
written line by line and is all that a restart needs: trials, reports and rung decisions follow from it by replay.

Invariant: a line is on its way to disk before the study acts on it; a torn last line is left out; a trial has
exactly one final state.

Covered: append, read. Not covered: what the entries mean to a sampler or a scheduler (study.py, ray_tune.py).
"""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from cluster.telemetry.events import append_line

TrialState = Literal["running", "done", "stopped", "diverged", "oom", "failed"]
FINAL_STATES: frozenset[str] = frozenset({"done", "stopped", "diverged", "oom", "failed"})


@dataclass
class Trial:
    """One configuration and what is known of it. `reports[epoch]` is the searched metric after that epoch."""

    number: int
    values: dict[str, Any]
    """Dotted path of the spec -> value."""
    source: str
    """Who proposed it: `current` (the spec as written), `start`, `transfer`, `quasi-random`, `tpe@<epoch>`, `grid`."""
    reports: dict[int, float] = field(default_factory=dict)
    metrics: dict[int, dict[str, float]] = field(default_factory=dict)
    state: TrialState = "running"
    note: str = ""

    @property
    def ended(self) -> bool:
        return self.state in FINAL_STATES

    @property
    def epochs(self) -> int:
        """Epochs reported."""
        return max(self.reports, default=0)


class Journal:
    """Appends to `path`; with None it keeps nothing (simulations)."""

    def __init__(self, path: Path | None) -> None:
        self._path = path

    def asked(self, trial: Trial) -> None:
        self._append({"event": "asked", "trial": trial.number, "values": trial.values, "source": trial.source})

    def reported(self, number: int, epoch: int, value: float, metrics: dict[str, float]) -> None:
        self._append({"event": "reported", "trial": number, "epoch": epoch, "value": value, "metrics": metrics})

    def ended(self, trial: Trial) -> None:
        self._append({"event": "ended", "trial": trial.number, "state": trial.state, "note": trial.note})

    def _append(self, entry: dict[str, Any]) -> None:
        if self._path is not None:
            append_line(self._path, json.dumps(entry, allow_nan=False))


def read_journal(path: Path) -> list[Trial]:
    """All trials in the order of their numbers; a trial without an end is `running` with the reports it made."""
    trials: dict[int, Trial] = {}
    for entry in _entries(path):
        number = int(entry["trial"])
        if entry["event"] == "asked":
            trials[number] = Trial(number, entry["values"], entry["source"])
        elif entry["event"] == "reported":
            trials[number].reports[entry["epoch"]] = entry["value"]
            trials[number].metrics[entry["epoch"]] = entry["metrics"]
        else:
            trials[number].state, trials[number].note = entry["state"], entry["note"]
    return [trials[number] for number in sorted(trials)]


def _entries(path: Path) -> list[dict[str, Any]]:
    if not path.exists():
        return []
    lines = path.read_text(encoding="utf-8").splitlines(keepends=True)
    return [json.loads(line) for line in lines if line.endswith("\n")]
