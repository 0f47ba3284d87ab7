"""Steps one after the other, each in a child process with a hard deadline; the result is on disk after each finding.

Invariant: whatever a step does (hangs, crashes, kills its process), the run goes on with the next one, and what it had
found until then is kept. Nothing of a step lives on: its process group is ended with it.
"""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from benchmarks.gpu.findings import load_json, save_json
from benchmarks.gpu.plan import ROOT, Step

POLL_S = 0.5  # how soon a finding of a running step is in the result
MARGIN = 0.1  # of a step's time, that it may take to stop by itself
FLOOR_SHARE, FLOOR_S = 1 / 24, 60.0  # of the time, and at most: importing torch and starting CUDA alone take seconds
LEAST_S = 2.0  # a step that has less is not started
STDERR_LINES = 12


class Runner:
    """One run over all steps."""

    def __init__(self, device: str, minutes: float, work: Path, save: Callable[[dict[str, Any]], None]) -> None:
        self.device, self.work, self.save = device, work, save
        self.until, self.floor_s = time.monotonic() + minutes * 60, min(FLOOR_S, minutes * 60 * FLOOR_SHARE)
        self.report: dict[str, Any] = {
            "format": 1,
            "dry": device == "cpu",
            "minutes": minutes,
            "started": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
            "command": " ".join(sys.argv),
            "steps": {},
        }

    def run(self, steps: Sequence[Step]) -> dict[str, Any]:
        """The report; also saved after every change."""
        for step in steps:
            self.note(step, status="not run", reason="the run has not come to it")
        self.save(self.report)
        for number, step in enumerate(steps):
            shares = sum(later.share for later in steps[number:])
            left_s = self.until - time.monotonic()
            allowed_s = max(left_s * step.share / shares, min(self.floor_s, left_s))
            if allowed_s >= LEAST_S:
                self._one(step, allowed_s)
            else:
                self.note(step, reason="too little time was left")
        self.report["seconds"] = round(self.report["minutes"] * 60 - (self.until - time.monotonic()), 1)
        self.save(self.report)
        return self.report

    def note(self, step: Step, **facts: Any) -> None:
        """Merge facts into a step's record."""
        record = self.report["steps"].setdefault(step.name, {"question": step.question, "findings": {}})
        record.update(facts)

    def _one(self, step: Step, allowed_s: float) -> None:
        file = self.work / f"{step.name}.json"
        started = time.monotonic()
        self.note(step, status="running", reason="", allowed_s=round(allowed_s, 1))
        with (self.work / f"{step.name}.out").open("w+b") as output:
            child = subprocess.Popen(
                _command(step, self.device, self.work, file, allowed_s),
                cwd=ROOT,
                stdout=output,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
            try:
                code = self._wait(child, step, file, started + allowed_s)
            finally:
                _end_group(child)
            output.seek(0)
            said = output.read().decode(errors="replace").splitlines()
        record = load_json(file)
        facts = {"findings": record.get("findings", {}), "seconds": round(time.monotonic() - started, 1)}
        self.note(step, **facts, **_outcome(code, record, said, allowed_s))
        self.save(self.report)

    def _wait(self, child: subprocess.Popen[bytes], step: Step, file: Path, until: float) -> int | None:
        """Exit code; None when the time was up. The findings so far go into the result meanwhile."""
        seen = 0.0
        while (left := until - time.monotonic()) > 0:
            try:
                return child.wait(min(POLL_S, left))
            except subprocess.TimeoutExpired:
                changed = file.stat().st_mtime if file.exists() else 0.0
                if changed != seen:
                    seen = changed
                    self.note(step, findings=load_json(file).get("findings", {}))
                    self.save(self.report)
        return None


def save_report(folder: Path, report: dict[str, Any]) -> None:
    """`result.json` and `result.md`."""
    from benchmarks.gpu.page import page_of

    save_json(folder / "result.json", report)
    beside = folder / f".result.md.{os.getpid()}"
    beside.write_text(page_of(report), encoding="utf-8")
    beside.replace(folder / "result.md")


def _command(step: Step, device: str, work: Path, file: Path, allowed_s: float) -> list[str]:
    command = [sys.executable, "-m", "benchmarks.gpu.child", step.function, *step.arguments]
    command += ["--device", device, "--work", str(work), "--file", str(file)]
    command += ["--seconds", f"{allowed_s * (1 - MARGIN):.2f}", "--needs", *step.needs]
    return command


def _outcome(code: int | None, record: dict[str, Any], said: list[str], allowed_s: float) -> dict[str, Any]:
    if code is None:
        return {"status": "cut", "reason": f"its time of {allowed_s:.0f} s was up; what it had is kept"}
    if code:
        name = signal.Signals(-code).name if code < 0 else f"exit code {code}"
        return {"status": "failed", "reason": name, "output": said[-STDERR_LINES:]}
    if "skipped" in record:
        return {"status": "skipped", "reason": record["skipped"]}
    bad = [name for name, facts in record.get("findings", {}).items() if facts.get("ok") is False]
    return {"status": "wrong", "reason": f"not as it should be: {', '.join(bad)}"} if bad else {"status": "done"}


def _end_group(child: subprocess.Popen[bytes]) -> None:
    """The child led a session of its own: whatever it started and left goes with it."""
    with contextlib.suppress(ProcessLookupError):
        os.killpg(child.pid, signal.SIGKILL)
    child.wait()
