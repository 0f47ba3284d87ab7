"""A run's folder: `spec.yaml resolved.yaml events.jsonl stages/<stage>/ checkpoints/ tensorboard/ bundle/ report.html`.

Invariant: a stage is done exactly when `stages/<stage>/record.json` exists, because the folder with the record in
it is renamed into place last; a record names the digest of its inputs and the sha256 of its files. A record or a state
that was damaged since counts as none: its stage runs again.

Covered: paths, stage records, listing runs. Not covered: what a stage does (cluster/pipeline).
"""

from __future__ import annotations

import json
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from pydantic import Field, ValidationError

from cluster.atomic import digest_json, sha256_file, write_text
from cluster.errors import RequestError
from cluster.spec.base import StrictSpec
from cluster.spec.compress import without_masks
from cluster.spec.resolve import ResolvedRun
from cluster.telemetry.events import FileSink

RECORD = "record.json"
TRAINING = "training.json"
"""In each folder of `checkpoints/`: what its training was (trainers/launch/earlier.py)."""
FORGOTTEN = "forgotten"
"""Beside it: nobody goes on with that training, and it goes once another has an epoch."""


class StageRecord(StrictSpec):
    """What a finished stage leaves behind."""

    stage: str
    inputs_digest: str
    """sha256 over the stage's name and format, its spec sections and the output digests of the stages it needs."""
    status: Literal["done", "skipped"] = "done"
    facts: dict[str, Any] = {}
    """JSON-able results for later stages, the report and `manta show`."""
    details: dict[str, Any] = {}
    """Results that later stages do not depend on: durations, throughputs, host facts."""
    headline: str = ""
    files: dict[str, str] = Field(default_factory=dict)
    """Relative path -> sha256."""
    started_unix_s: float
    duration_s: float

    @property
    def output_digest(self) -> str:
        """sha256 over facts and files: changes when what later stages read has changed."""
        return digest_json({"facts": self.facts, "files": self.files})


@dataclass(frozen=True)
class RunFolder:
    """Paths of one run. Making an instance touches nothing on disk."""

    path: Path

    @property
    def name(self) -> str:
        return self.path.name

    @property
    def events(self) -> Path:
        return self.path / "events.jsonl"

    @property
    def log(self) -> Path:
        """Driver's log; Ray's own logs lie beside it in `ray-logs/`."""
        return self.path / "run.log"

    @property
    def resolved_path(self) -> Path:
        return self.path / "resolved.yaml"

    @property
    def lock(self) -> Path:
        """Held by the driver that works here (cluster/store/locks.py)."""
        return self.path / "lock"

    @property
    def owner(self) -> Path:
        """Whose the run is, where it was submitted to a cluster."""
        return self.path / "owner"

    @property
    def fence(self) -> Path:
        """Numbers that its drivers have drawn (cluster/store/fence.py)."""
        return self.path / "fence"

    @property
    def stop_request(self) -> Path:
        """Which driver is asked to end."""
        return self.path / "stop.json"

    @property
    def checkpoints(self) -> Path:
        return self.path / "checkpoints"

    @property
    def tensorboard(self) -> Path:
        return self.path / "tensorboard"

    @property
    def bundle(self) -> Path:
        return self.path / "bundle"

    @property
    def report(self) -> Path:
        return self.path / "report.html"

    @property
    def state(self) -> Path:
        """`{pid, host, state, endpoint, …}` of the driver that works or worked here."""
        return self.path / "state.json"

    def stage(self, name: str) -> Path:
        return self.path / "stages" / name

    def sink(self) -> FileSink:
        """A sink that appends to this run's events. Works in any process that sees this folder."""
        return FileSink(self.events)

    def record(self, stage: str) -> StageRecord | None:
        """The record of a finished stage; None where there is none that can be read."""
        path = self.stage(stage) / RECORD
        try:
            return StageRecord.model_validate_json(path.read_bytes())
        except (FileNotFoundError, ValidationError):
            return None

    def records(self) -> dict[str, StageRecord]:
        """All finished stages, in the order in which they finished."""
        folder = self.path / "stages"
        names = sorted(path.parent.name for path in folder.glob(f"*/{RECORD}"))
        found = {name: record for name in names if (record := self.record(name))}
        return dict(sorted(found.items(), key=lambda item: item[1].started_unix_s))

    def damaged_files(self, stage: str, record: StageRecord) -> list[str]:
        """Files of a finished stage that are gone or changed."""
        folder = self.stage(stage)
        return [
            name
            for name, digest in record.files.items()
            if not (folder / name).is_file() or sha256_file(folder / name) != digest
        ]

    def write_resolved(self, resolved: ResolvedRun) -> None:
        import yaml

        raw = resolved.model_dump(mode="json")
        write_text(self.resolved_path, yaml.safe_dump(raw, sort_keys=False, allow_unicode=True))

    def read_resolved(self) -> ResolvedRun | None:
        """The resolved run as written, or None before the check stage."""
        import yaml

        try:
            raw = yaml.safe_load(self.resolved_path.read_text(encoding="utf-8"))
        except FileNotFoundError:
            return None
        if compress := raw["spec"].get("compress"):
            raw["spec"]["compress"] = without_masks(compress)
        return ResolvedRun.model_validate_json(json.dumps(raw))

    def read_state(self) -> dict[str, Any]:
        """The driver's state file, or an empty dict."""
        try:
            state = json.loads(self.state.read_bytes())
        except (FileNotFoundError, ValueError):
            return {}
        return state if isinstance(state, dict) else {}


def list_runs(root: Path) -> list[RunFolder]:
    """Runs under a folder, newest first."""
    found = [RunFolder(path) for path in root.glob("*") if (path / "spec.yaml").is_file()]
    return sorted(found, key=lambda run: (run.path / "spec.yaml").stat().st_mtime, reverse=True)


def find_run(root: Path, name: str) -> RunFolder:
    """A run by name or by path. Raises RequestError that lists the runs there are."""
    for path in (root / name, Path(name)):
        if name and os.path.isfile(path / "spec.yaml"):  # noqa: PTH113 - Path.is_file raises for a long name
            return RunFolder(path.resolve())
    have = ", ".join(run.name for run in list_runs(root)[:10]) or "none"
    raise RequestError(
        f"Cannot find run '{name}'",
        found=f"{root} has no such run",
        remedy=f"Runs there: {have}. Give another folder with --runs-dir.",
    )
