"""Runs of this machine for `manta runs`, `show`, `logs`, `stop` and `status`: what their folders say, and a signal to
their driver.

Invariant: a signal goes only to a process of this host that has the run's lock file open: a process id that was given
to somebody else since is never touched. A driver of another host is asked through the run's folder.
"""

from __future__ import annotations

import os
import signal
import socket
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil

from cluster.errors import RunError
from cluster.store.fence import ask_to_stop
from cluster.store.locks import is_locked, wait_until_free
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
    """Ask the run's driver to end, and wait until it has gone; False if none is at work. Raises RunError.

    A driver of this host gets SIGTERM; one of another host finds the request in the run's folder within a second.
    """
    state = run.read_state()
    if not is_locked(run.lock):
        return False
    ask_to_stop(run)
    if state.get("host") == socket.gethostname() and _holds_lock(int(state["pid"]), run):
        os.kill(int(state["pid"]), signal.SIGTERM)
    if not wait_until_free(run.lock, deadline_s):
        raise RunError(
            f"Run '{run.name}' did not stop",
            found=f"its driver, process {state.get('pid')} on host {state.get('host')}, is still there after "
            f"{deadline_s:g} s",
            remedy=f"Look at {run.log}; 'kill -9 {state.get('pid')}' there ends it, and what it started ends with it.",
        )
    return True


def _holds_lock(pid: int, run: RunFolder) -> bool:
    """Whether that process of this host has the run's lock file open: hosts that are containers can share a name."""
    try:
        opened = psutil.Process(pid).open_files()
    except psutil.Error:
        return False
    return any(file.path == str(run.lock) for file in opened)


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
