"""Steps for the tests of the GPU script's runner: no torch, so that their processes start at once."""

from __future__ import annotations

import os
import threading

from benchmarks.gpu.findings import Context, Findings, Skip


def hang(context: Context, findings: Findings) -> None:
    findings.put("before", rows=3)
    threading.Event().wait(120)


def crash(context: Context, findings: Findings) -> None:
    findings.put("before", rows=4)
    os.abort()


def raise_it(context: Context, findings: Findings) -> None:
    raise ValueError("a step's own bug")


def find_wrong(context: Context, findings: Findings) -> None:
    findings.put("figure", ok=False, ratio=0.5)


def find_right(context: Context, findings: Findings) -> None:
    findings.put("figure", ok=True, ratio=1.5, device=context.device, arguments=context.arguments)
    findings.skip("part", "there is none here")


def decline(context: Context, findings: Findings) -> None:
    raise Skip("no such tool")
