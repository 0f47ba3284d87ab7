"""From nothing to the first update, to the end of one epoch of digits, and to an endpoint that has answered.

    start       `manta train` and a plain TorchTrainer, two workers each: first update, whole command
    start_one   the same with one worker each
    run         `manta run` of a table of 700 rows without search, and of the quickstart, each from raw data to an
                endpoint that has answered and the report (its Ray ends after that), beside the two-worker
                TorchTrainer's one epoch

All are command lines in a new process with a private Ray of their own that ends with them; the clock starts when the
command does. Covered: everything a user waits for. Not covered: a cluster that stands already.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

TRAIN_SPEC = """
version: 1
name: digits
data: {{source: {{kind: sklearn, dataset: digits}}, split: {{validation: 0.1, test: 0.1}}}}
model: {{family: mlp, hidden: [128, 128]}}
train: {{epochs: 1, workers: {workers}, batch_size_global: 64, batch_size_per_worker: 32, log_every_updates: 1}}
compress: null
serve: null
"""
TABLE_SPEC = """
version: 1
name: table
data: {source: {kind: csv, path: table.csv}, target: label}
serve: {port: 0}
"""
TABLE_ROWS = 700
QUICKSTART = Path("configs/quickstart.yaml")
WORKERS = {"start": 2, "start_one": 1}


def measure(name: str, side: str) -> tuple[float, float]:
    """The two clocks of a case for `ours` or `other`, in a folder of its own."""
    with tempfile.TemporaryDirectory(prefix="bench-start-") as folder:
        if name == "run":
            return _runs(Path(folder)) if side == "ours" else (_peer(Path(folder), 2)[1],) * 2
        return (_train if side == "ours" else _peer)(Path(folder), WORKERS[name])


def _train(folder: Path, workers: int) -> tuple[float, float]:
    """(seconds to the first update, seconds to the command's end)."""
    from cluster.telemetry.events import TrainStep, read_events

    (folder / "digits.yaml").write_text(TRAIN_SPEC.format(workers=workers))
    started, spent = _manta(folder, "train", str(folder / "digits.yaml"))
    first = next(e.time_s for e in read_events(folder / "digits" / "events.jsonl") if isinstance(e, TrainStep))
    return first - started, spent


def _peer(folder: Path, workers: int) -> tuple[float, float]:
    """The same of the TorchTrainer."""
    command = [sys.executable, "-m", "benchmarks.training_cpu.ray_peer", str(folder), str(workers)]
    started, spent = _run(command, Path.cwd())
    return float((folder / "first_update").read_text()) - started, spent


def _runs(folder: Path) -> tuple[float, float]:
    """Seconds to the results of `manta run`, for the table and for the quickstart."""
    (folder / "table.yaml").write_text(TABLE_SPEC)
    (folder / "table.csv").write_text(_table())
    return _to_results(folder, "table", folder / "table.yaml"), _to_results(folder, "quickstart", QUICKSTART.resolve())


def _to_results(folder: Path, name: str, spec: Path) -> float:
    from cluster.telemetry.events import RunFinished, read_events

    started, _ = _manta(folder, "run", str(spec), "--name", name, "--set", "serve.port=0")
    events = read_events(folder / name / "events.jsonl")
    return next(event.time_s for event in events if isinstance(event, RunFinished)) - started


def _table() -> str:
    """Ten columns of numbers and a label that five of them decide."""
    import numpy as np

    rows = np.random.default_rng(7).normal(size=(TABLE_ROWS, 10))
    labels = np.where(rows[:, :5].sum(axis=1) > 0, "up", "down")
    lines = [",".join([*(f"x{n}" for n in range(10)), "label"])]
    lines += [",".join([*(f"{value:.5f}" for value in row), label]) for row, label in zip(rows, labels, strict=True)]
    return "\n".join(lines) + "\n"


def _manta(folder: Path, *words: str) -> tuple[float, float]:
    command = [str(Path(sys.executable).with_name("manta")), *words, "--runs-dir", str(folder)]
    return _run(command, folder)


def _run(command: list[str], folder: Path) -> tuple[float, float]:
    """(Unix time of the start, seconds to the end)."""
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(Path.cwd())}
    started, clock = time.time(), time.monotonic()
    done = subprocess.run(
        command, env=environment, cwd=folder, capture_output=True, text=True, timeout=300, check=False
    )
    if done.returncode:
        raise SystemExit(f"{' '.join(command)} failed:\n{done.stdout}\n{done.stderr}")
    return started, time.monotonic() - clock
