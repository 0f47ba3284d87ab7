"""What a step has found so far, on disk after every finding: a step that is cut keeps what it had.

Invariant: the file is whole at every moment (written beside, then renamed).
"""

from __future__ import annotations

import json
import os
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any


class Skip(Exception):
    """The step, or a part of it, cannot run here; the text says why."""


@dataclass(frozen=True)
class Context:
    """Where and how long a step runs."""

    device: str
    """`cuda:0`, or `cpu` for a dry run with tiny sizes."""
    work: Path
    """Shared by all steps of a run, and thrown away after it."""
    until_s: float
    """time.monotonic() at which a step should have stopped by itself."""
    arguments: tuple[str, ...] = ()

    @property
    def dry(self) -> bool:
        return self.device == "cpu"

    def left_s(self) -> float:
        return self.until_s - time.monotonic()


@dataclass
class Findings:
    """Name -> facts. `ok` in a finding is a verdict: true, false, or absent where there is none."""

    path: Path
    found: dict[str, dict[str, Any]] = field(default_factory=dict)

    def put(self, name: str, /, **facts: Any) -> None:
        self.found[name] = {**self.found.get(name, {}), **facts}
        save_json(self.path, {"findings": self.found})

    def skip(self, name: str, reason: str) -> None:
        self.put(name, skipped=reason)


def save_json(path: Path, value: Any) -> None:
    """All or nothing."""
    beside = path.with_name(f".{path.name}.{os.getpid()}")
    beside.write_text(json.dumps(value, indent=1, default=str) + "\n", encoding="utf-8")
    beside.replace(path)


def load_json(path: Path) -> dict[str, Any]:
    try:
        return dict(json.loads(path.read_text(encoding="utf-8")))
    except (OSError, ValueError):
        return {}
