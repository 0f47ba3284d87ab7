"""`python -m benchmarks.data.peak RESULT COMMAND…`: run a command and write its wall seconds and peak memory as JSON.

Invariant: this process stays small, because Linux counts the memory that a process had before `exec` into its child's
peak; the numbers are the kernel's (wait4), not the command's own word. Exit code: the command's.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from pathlib import Path


def main() -> int:
    result, *command = sys.argv[1:]
    started = time.perf_counter()
    process = subprocess.Popen(command)
    _, status, usage = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    Path(result).write_text(json.dumps({"wall_s": time.perf_counter() - started, "peak_mib": usage.ru_maxrss / 1024}))
    return process.returncode


if __name__ == "__main__":
    sys.exit(main())
