"""A driver process: one that fails while its Ray is starting does not wait for it, and leaves nothing behind."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from cluster.store.run_folder import RunFolder
from cluster.telemetry.events import RunFailed, read_events
from tests.integration.runtime_tests.test_session import GONE_S, START_S, within

SPEC = """
version: 1
data: {source: {kind: python, function: "failing_source:frame"}, target: y}
serve: {port: 0}
"""
SOURCE = """
import os, time, psutil

def frame():
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline:
        for process in psutil.process_iter(["cmdline"]):
            words = process.info["cmdline"] or []
            if "gcs_server" in " ".join(words[:1]) and any(os.environ["WATCHED"] in word for word in words):
                raise ValueError("while Ray starts")
        time.sleep(0.02)
    raise TimeoutError("no Ray has begun to start")
"""


@pytest.fixture
def temporary() -> Iterator[Path]:
    """A temporary directory whose path is short enough for Ray's sockets."""
    with tempfile.TemporaryDirectory(prefix="m-", dir="/tmp") as folder:
        yield Path(folder)


def naming(folder: Path) -> list[str]:
    """Processes that name a folder in their command line."""
    found = []
    for process in psutil.process_iter(["cmdline", "status"]):
        words = " ".join(process.info["cmdline"] or [])
        if str(folder) in words and process.info["status"] != psutil.STATUS_ZOMBIE:
            found.append(words[:120])
    return found


def test_a_run_that_fails_while_ray_starts_leaves_nothing(tmp_path: Path, temporary: Path) -> None:
    (tmp_path / "failing_source.py").write_text(SOURCE)
    run = RunFolder(tmp_path / "run")
    run.path.mkdir()
    (run.path / "spec.yaml").write_text(SPEC)
    environment = {name: value for name, value in os.environ.items() if not name.startswith("RAY_A")}
    paths = os.pathsep.join([str(tmp_path), str(Path(__file__).parents[3])])
    done = subprocess.run(
        [sys.executable, "-m", "cluster.pipeline", str(run.path)],
        env={**environment, "TMPDIR": str(temporary), "WATCHED": str(temporary), "PYTHONPATH": paths},
        cwd=tmp_path, timeout=START_S, capture_output=True, text=True, check=False,
    )  # fmt: skip
    (failed,) = [event for event in read_events(run.events) if isinstance(event, RunFailed)]
    assert "while Ray starts" in failed.traceback
    assert done.returncode == failed.error["exit_code"], done.stderr
    assert run.read_state()["state"] == "failed"
    assert within(GONE_S, lambda: not naming(temporary)), naming(temporary)
    assert within(GONE_S, lambda: not list(temporary.iterdir())), list(temporary.iterdir())
