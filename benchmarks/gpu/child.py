"""`python -m benchmarks.gpu.child`: one step in this process. Started by the runner, never by hand.

Exit code 0: the step ended (its file says whether it was skipped); anything else: it failed, stderr says how.
"""

from __future__ import annotations

import argparse
import importlib
import importlib.util
import signal
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from benchmarks.gpu.findings import Context, Findings, Skip, save_json


def main() -> int:
    parser = argparse.ArgumentParser()
    parser.add_argument("function")
    parser.add_argument("arguments", nargs="*")
    parser.add_argument("--device", required=True)
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--file", type=Path, required=True)
    parser.add_argument("--seconds", type=float, required=True)
    parser.add_argument("--needs", nargs="*", default=[])
    options = parser.parse_args()
    signal.signal(signal.SIGALRM, lambda *_: sys.exit(124))
    signal.alarm(int(2 * options.seconds) + 30)  # where the runner was killed nobody else would end this process
    context = Context(options.device, options.work, time.monotonic() + options.seconds, tuple(options.arguments))
    run_step(options.function, options.needs, context, Findings(options.file))
    return 0


def run_step(function: str, needs: Sequence[str], context: Context, findings: Findings) -> None:
    """Run one step; a skip is written into its file."""
    try:
        if missing := [name for name in needs if not installed(name)]:
            raise Skip(f"not installed here: {', '.join(missing)}")
        module, _, name = function.partition(":")
        getattr(importlib.import_module(module), name)(context, findings)
    except Skip as reason:
        save_json(findings.path, {"findings": findings.found, "skipped": str(reason)})


def installed(name: str) -> bool:
    """Whether a module can be imported, without importing it."""
    try:
        return importlib.util.find_spec(name) is not None
    except ImportError:
        return False


if __name__ == "__main__":
    sys.exit(main())
