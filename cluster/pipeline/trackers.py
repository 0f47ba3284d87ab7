"""Send a run's curves to its trackers, in a process of its own with a deadline.

Invariant: whatever a tracker does (a dead server, a broken package, a hang), the run ends as it would without one, at
most `tracking.timeout_s` later, with one warning in its events.

Covered: starting, killing, reporting. Not covered: what is sent (trainers/trackers).
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys

from cluster.entrypoints import COMMAND_MODULES
from cluster.spec.tracking import TrackingSpec
from cluster.store.run_folder import RunFolder
from cluster.telemetry.events import Message


def send_to_trackers(run: RunFolder, tracking: TrackingSpec, status: str) -> None:
    """Does nothing where the spec names no tracker. `status`: finished or failed. Blocks, at most timeout_s."""
    if tracking.mlflow is None and tracking.wandb is None:
        return
    command = [sys.executable, "-m", COMMAND_MODULES["trackers"], str(run.path), "--status", status]
    try:
        process = subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            start_new_session=True,
        )
    except OSError as error:
        _warn(run, f"their process did not start: {error}")
        return
    try:
        output, _ = process.communicate(timeout=tracking.timeout_s)
    except subprocess.TimeoutExpired:
        _kill(process)
        _warn(run, f"they had not taken everything after {tracking.timeout_s:g} s (tracking.timeout_s)")
        return
    except BaseException:  # an interrupt: the process is in a session of its own, which no Ctrl-C reaches
        _kill(process)
        raise
    if process.returncode:
        lines = output.strip().splitlines()
        _warn(
            run, lines[-1].removeprefix("Error: ") if lines else f"their process ended with code {process.returncode}"
        )


def _kill(process: subprocess.Popen[str]) -> None:
    os.killpg(process.pid, signal.SIGKILL)  # the group: wandb starts a process of its own
    process.communicate()


def _warn(run: RunFolder, why: str) -> None:
    text = f"The trackers were not served: {why}. 'python -m trainers.trackers {run.path}' sends this run again."
    run.sink().emit(Message(level="warning", text=text))
