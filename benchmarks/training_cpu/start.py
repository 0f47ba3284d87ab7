"""From nothing to the first update, and to the end of one epoch of digits: `manta train` and a plain TorchTrainer.

Both are command lines in a new process with a private Ray of their own that ends with them; the clock starts when the
command does. Covered: everything a user waits for. Not covered: a cluster that stands already.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

SPEC = """
version: 1
name: digits
data: {source: {kind: sklearn, dataset: digits}, split: {validation: 0.1, test: 0.1}}
model: {family: mlp, hidden: [128, 128]}
train: {epochs: 1, workers: 2, batch_size_global: 64, batch_size_per_worker: 32, log_every_updates: 1}
compress: null
serve: null
"""


def ours(folder: Path) -> tuple[float, float]:
    """(seconds to the first update, seconds to the command's end)."""
    from cluster.telemetry.events import TrainStep, read_events

    (folder / "digits.yaml").write_text(SPEC)
    command = [
        str(Path(sys.executable).with_name("manta")),
        "train",
        str(folder / "digits.yaml"),
        "--runs-dir",
        str(folder),
    ]
    started, spent = _run(command, folder)
    first = next(e.time_s for e in read_events(folder / "digits" / "events.jsonl") if isinstance(e, TrainStep))
    return first - started, spent


def peer(folder: Path) -> tuple[float, float]:
    """The same of the TorchTrainer."""
    started, spent = _run([sys.executable, "-m", "benchmarks.training_cpu.ray_peer", str(folder)], folder)
    return float((folder / "first_update").read_text()) - started, spent


def _run(command: list[str], folder: Path) -> tuple[float, float]:
    """(Unix time of the start, seconds to the end)."""
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(Path.cwd())}
    started, clock = time.time(), time.monotonic()
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=200, check=False)
    if done.returncode:
        raise SystemExit(f"{' '.join(command)} failed:\n{done.stdout}\n{done.stderr}")
    return started, time.monotonic() - clock


def measure(side: str) -> tuple[float, float]:
    """`ours` or `other`, in a folder of its own."""
    with tempfile.TemporaryDirectory(prefix="bench-start-") as folder:
        return (ours if side == "ours" else peer)(Path(folder))
