"""The `manta` command as a subprocess, as a user runs it."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parents[2]
RUN_TIMEOUT_S = 280


@dataclass(frozen=True)
class Done:
    """A finished command."""

    code: int
    stdout: str
    stderr: str

    @property
    def json(self) -> Any:
        return json.loads(self.stdout)


def call_manta(*arguments: str, cwd: Path, timeout_s: float = RUN_TIMEOUT_S) -> Done:
    """Run `manta` with the interpreter of this test session and wait for it."""
    command = [str(Path(sys.executable).with_name("manta")), *arguments]
    environment = {key: value for key, value in os.environ.items() if not key.startswith("RAY_")}
    done = subprocess.run(command, cwd=cwd, env=environment, capture_output=True, text=True, timeout=timeout_s)
    return Done(done.returncode, done.stdout, done.stderr)


@pytest.fixture
def manta(tmp_path: Path) -> Callable[..., Done]:
    """`manta(*arguments)` in a fresh folder."""
    return lambda *arguments: call_manta(*arguments, cwd=tmp_path)


@dataclass(frozen=True)
class KeptRun:
    """The quickstart, finished, its endpoint still answering."""

    cwd: Path
    summary: dict[str, Any]
    stderr: str

    @property
    def folder(self) -> Path:
        return Path(self.summary["folder"])


@pytest.fixture(scope="module")
def quickstart(tmp_path_factory: pytest.TempPathFactory) -> Iterator[KeptRun]:
    """The quickstart, once for a module, in a folder of its own with `--keep`; stopped at the end."""
    cwd = tmp_path_factory.mktemp("quickstart")
    shutil.copytree(ROOT / "configs", cwd / "configs")
    arguments = ("run", "configs/quickstart.yaml", "--keep", "--json", "--set", "serve.port=0")
    done = call_manta(*arguments, cwd=cwd)
    try:
        assert done.code == 0, done.stderr + (cwd / "runs/quickstart/run.log").read_text()[-4000:]
        yield KeptRun(cwd, done.json, done.stderr)
    finally:
        call_manta("stop", "quickstart", cwd=cwd)
