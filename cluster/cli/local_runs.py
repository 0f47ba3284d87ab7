"""Runs of this machine for `manta runs`, `show`, `logs`, `stop` and `status`: what their folders say, and a signal to
their driver.

Invariant: a signal goes only to a process that holds the run's lock now, on this host: a process id that was given to
somebody else since is never touched.
"""

from __future__ import annotations

import os
import signal
import socket
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from cluster.errors import RequestError, RunError
from cluster.store.locks import is_locked
from cluster.store.run_folder import RunFolder, find_run, list_runs
from cluster.store.stage_facts import EvaluateFacts

STOP_DEADLINE_S = 60.0  # an endpoint drains, workers write a checkpoint, Ray ends: seconds, a minute on a busy host
POLL_S = 0.2
EXIT_CODES = {"failed": 1, "interrupted": 1, "cut short": 1}


def describe(run: RunFolder) -> dict[str, Any]:
    """JSON-able facts of a run."""
    records = run.records()
    state = run.read_state()
    name = state.get("state", "new")
    if name in ("running", "serving") and not is_locked(run.lock):
        name = "cut short"  # its driver is gone without a last word
    evaluated = EvaluateFacts.of(records)
    return {
        "run": run.name,
        "folder": str(run.path),
        "state": name,
        "started_unix_s": (run.path / "spec.yaml").stat().st_mtime,
        "metrics": evaluated.metrics if evaluated else {},
        "stages": {
            stage: {"status": record.status, "duration_s": record.duration_s, "headline": record.headline}
            for stage, record in records.items()
        },
        "error": state.get("error"),
        "endpoint": state.get("summary", {}).get("endpoint") if name == "serving" else None,
        "bundle": str(run.bundle) if run.bundle.exists() else None,
        "report": str(run.report) if run.report.exists() else None,
    }


def stop_run(run: RunFolder, *, deadline_s: float = STOP_DEADLINE_S) -> bool:
    """SIGTERM to the run's driver, and wait until it has gone; False if none is at work. Raises RunError."""
    state = run.read_state()
    if not is_locked(run.lock):
        return False
    if state.get("host") != socket.gethostname():
        raise RequestError(
            f"Cannot stop run '{run.name}'",
            found=f"its driver runs on host {state.get('host')}",
            rule="a signal reaches processes of its own host",
            remedy="Run the command there, or stop its job with 'manta stop JOB --address …'.",
        )
    os.kill(int(state["pid"]), signal.SIGTERM)
    deadline = time.monotonic() + deadline_s
    while is_locked(run.lock):
        if time.monotonic() > deadline:
            raise RunError(
                f"Run '{run.name}' did not stop",
                found=f"its driver, process {state['pid']}, is still there after {deadline_s:g} s",
                remedy=f"Look at {run.log}; 'kill -9 {state['pid']}' ends it, and what it started ends with it.",
            )
        time.sleep(POLL_S)
    return True


def follow_log(run: RunFolder, show: Callable[[str], None], *, follow: bool) -> int:
    """Show the run's log; with `follow` until its driver has gone. Returns the run's exit code, or 0."""
    offset = 0
    while True:
        working = is_locked(run.lock)
        if run.log.exists():
            with run.log.open("rb") as file:
                file.seek(offset)
                chunk = file.read()
            offset += len(chunk)
            show(chunk.decode("utf-8", errors="replace"))
        if not (follow and working):
            break
        time.sleep(POLL_S)
    return int((describe(run)["error"] or {}).get("exit_code", 0)) if follow else 0


def status_rows(runs_dir: Path, name: str | None) -> list[dict[str, Any]]:
    """State of one or all runs, newest first."""
    return [_row(run) for run in ([find_run(runs_dir, name)] if name else list_runs(runs_dir))]


def _row(run: RunFolder) -> dict[str, Any]:
    facts = describe(run)
    error = facts["error"] if facts["state"] in EXIT_CODES else None
    endpoint = facts["endpoint"] or {}
    note = error["message"] if error else endpoint.get("url", "")
    return {"id": run.name, "state": facts["state"], "note": note, "exit_code": (error or {}).get("exit_code"), **facts}
