"""`pytest -m gpu tests/gpu`: each test's outcome is a finding as soon as it is known.

Without the project's pytest settings: they name plugins and turn warnings of other versions into errors. Left out is
what the steps measure with less time: the speeds and the batch finder's limit.
"""

from __future__ import annotations

import os
from typing import Any

import pytest

from benchmarks.gpu.findings import Context, Findings, load_json
from benchmarks.gpu.plan import ROOT

LEFT_OUT = "not hand_written_loop and not true_limit"
REASON_CHARACTERS = 300


class Recorder:
    """pytest's hooks that write findings."""

    def __init__(self, findings: Findings) -> None:
        self.findings = findings

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        if report.skipped:
            where = report.longrepr
            self.findings.skip(report.nodeid, str(where[2] if isinstance(where, tuple) else where))
        elif report.failed or report.when == "call":
            facts: dict[str, Any] = {"ok": not report.failed, "seconds": round(report.duration, 2)}
            if report.failed:
                facts["error"] = report.longreprtext[-REASON_CHARACTERS:]
            self.findings.put(report.nodeid, **facts)

    def pytest_collectreport(self, report: pytest.CollectReport) -> None:
        if report.failed:
            self.findings.put(report.nodeid, ok=False, error=report.longreprtext[-REASON_CHARACTERS:])


def run(context: Context, findings: Findings) -> None:
    settings = context.work / "pytest.ini"
    markers = "".join(f"    {name}\n" for name in ("gpu", "slow", "timeout(seconds)", "tensorrt_level(name)"))
    settings.write_text(f"[pytest]\npythonpath = {ROOT}\naddopts = --import-mode=importlib\nmarkers =\n{markers}")
    arguments = ["-c", str(settings), "--rootdir", str(ROOT), "--confcutdir", str(ROOT), "-m", "gpu", "-k", LEFT_OUT]
    arguments += ["-q", "-p", "no:cacheprovider", str(ROOT / "tests" / "gpu")]
    os.environ["MANTA_GPU_EVIDENCE"] = str(context.work)
    code = pytest.main(arguments, plugins=[Recorder(findings)])
    findings.put("pytest", exit_code=int(code), ok=code in (0, 5))
    if tensorrt := load_json(context.work / "tensorrt-evidence.json"):
        findings.put("tensorrt", **tensorrt)
