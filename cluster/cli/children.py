"""Other rooms' commands, started by module name as a process of their own: the floor never imports a room."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Sequence

from cluster.runtime.environment import with_ray_environment


def run_module(module: str, arguments: Sequence[str]) -> int:
    """Run `python -m module …` on this terminal and return its exit code. Blocks."""
    command = [sys.executable, "-m", module, *arguments]
    process = subprocess.Popen(command, env=with_ray_environment(dict(os.environ)))
    # a terminal sends SIGINT to both; SIGTERM reaches this process alone, and must not leave an orphan
    before = signal.signal(signal.SIGTERM, lambda number, _: process.send_signal(number))
    try:
        while True:
            try:
                return process.wait()
            except KeyboardInterrupt:
                continue  # the child has the same signal: it ends by itself
    finally:
        signal.signal(signal.SIGTERM, before)
