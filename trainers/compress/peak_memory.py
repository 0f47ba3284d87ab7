"""Peak memory of a graph: what loading it and answering its largest batch adds to a fresh process.

`python -m trainers.compress.peak_memory GRAPH ROWS THREADS` prints bytes, in a process of its own: in a shared one a
peak holds what other graphs have left behind. The rows are zeros, whose memory is that of any rows.

Invariant: never imports torch.

Covered: Linux, CPU. Not covered: memory on a GPU (serve/footprint.py measures it where the engine runs).
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import numpy as np

STATUS = Path("/proc/self/status")
CLEAR_PEAK = Path("/proc/self/clear_refs")
TIMEOUT_S = 120
RUNS = 3
NUMPY_TYPES = {"tensor(float)": "f4", "tensor(double)": "f8", "tensor(float16)": "f2", "tensor(int64)": "i8",
               "tensor(int32)": "i4", "tensor(int8)": "i1", "tensor(uint8)": "u1", "tensor(bool)": "?"}  # fmt: skip


def peak_memory_bytes(graph: Path, *, rows: int, threads: int = 1) -> int | None:
    """Bytes that the graph adds at its peak, or None where they cannot be measured."""
    if not STATUS.exists():
        return None
    command = [sys.executable, "-m", __name__, str(graph), str(rows), str(threads)]
    environment = {
        **os.environ,
        "PYTHONPATH": os.pathsep.join([_root(), *filter(None, [os.environ.get("PYTHONPATH")])]),
    }
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=TIMEOUT_S, check=False, env=environment)
    except (OSError, subprocess.TimeoutExpired):
        return None
    return int(done.stdout) if done.returncode == 0 else None


def measure(graph: Path, rows: int, threads: int) -> int:
    """The measurement itself, in the fresh process."""
    from trainers.export.session import open_session

    before = _status_bytes("VmRSS")
    CLEAR_PEAK.write_text("5", encoding="ascii")  # proc(5): resets the peak to what is resident now
    session = open_session(graph, threads=threads)
    feed = {
        value.name: np.zeros(
            [size if isinstance(size, int) else (rows if axis == 0 else 1) for axis, size in enumerate(value.shape)],
            NUMPY_TYPES[value.type],
        )
        for value in session.get_inputs()
    }
    for _ in range(RUNS):
        session.run(None, feed)
    return max(0, _status_bytes("VmHWM") - before)


def _status_bytes(field: str) -> int:
    found = re.search(rf"^{field}:\s+(\d+) kB$", STATUS.read_text(encoding="ascii"), re.MULTILINE)
    assert found is not None, f"{STATUS} has {field}"
    return 1024 * int(found[1])


def _root() -> str:
    return str(Path(__file__).resolve().parents[2])


if __name__ == "__main__":
    sys.stdout.write(f"{measure(Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3]))}\n")
