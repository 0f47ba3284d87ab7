"""kill -9 at a moment inside an accumulation window: the run ends with the same bytes as one that was never killed.

Compared are files: weights, history with all metrics; and which rows each worker read, in which order. The judge is
the loop on plain gloo workers, without Ray.
"""

from __future__ import annotations

import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from cluster.telemetry.events import FileSink, Message, TrainStep, read_events
from tests.e2e.cluster_tests.head import clean_environment
from tests.integration.train_tests.test_launch import victim_request
from tests.unit.loop_tests.rig import run_ranks
from trainers.launch.fit import launch_fit
from trainers.loop import FitRequest, fit
from trainers.loop.result import write_result

FILES = ("weights.safetensors", "history.json")
MICRO_BATCHES_A_WINDOW = 2  # 12 rows, two workers, micro-batches of 3
AT = 12  # the second micro-batch of the second window of the second epoch


def _fit_plain(rank: int, request: FitRequest, out: str) -> None:
    result = fit(request, sink=FileSink(Path(out) / "events.jsonl"), device=torch.device("cpu"))
    if rank == 0:
        write_result(Path(out), result)


@pytest.fixture(scope="module")
def never_killed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("never")
    request = victim_request(folder, "plain", "kill", at=-1)
    (folder / "plain").mkdir()
    run_ranks(2, _fit_plain, folder / "ranks", replace(request, checkpoints=None), str(folder / "plain"))
    return folder / "plain"


def assert_same_bytes(never_killed: Path, out: Path) -> None:
    for name in FILES:
        assert (out / name).read_bytes() == (never_killed / name).read_bytes(), name


def assert_same_rows(never_killed: Path, killed: Path) -> None:
    """What was read up to the kill, and what was read after it from the start of some window on."""
    for rank in range(2):
        plain = (never_killed / f"rows.{rank}").read_text().splitlines()
        found = (killed / f"rows.{rank}").read_text().splitlines()
        again = len(found) - len(plain)  # micro-batches done twice: those since the last checkpoint
        assert 0 < again <= 2 * MICRO_BATCHES_A_WINDOW
        cut = next(
            index
            for index in range(len(plain) + 1)
            if found[index:] and found[:index] + found[index + again :] == plain
        )
        redone = next(at for at in range(cut, len(found)) if found[at:] == plain[at - again :])
        assert (redone - again) % MICRO_BATCHES_A_WINDOW == 0, "it went on at the start of a window"


@pytest.mark.parametrize("deed", ["kill", pytest.param("controller", marks=pytest.mark.slow)])
def test_kill_9_of_a_worker_or_the_controller_inside_a_window_changes_no_byte(
    ray_local: str, tmp_path: Path, never_killed: Path, deed: str
) -> None:
    request = victim_request(tmp_path, deed, deed, at=AT)
    (tmp_path / deed).mkdir()
    events = tmp_path / "events.jsonl"
    launch_fit(request, events=events, folder=tmp_path / "out")
    assert (tmp_path / deed / "marker").read_text() == "killed"
    said = [record.text for record in read_events(events) if isinstance(record, Message)]
    assert any("restart 1 of 3" in text for text in said), said
    assert any("goes on from checkpoint e00001-w00000001" in text for text in said), said
    assert_same_bytes(never_killed, tmp_path / "out")
    assert_same_rows(never_killed, tmp_path / deed)
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == sorted(FILES)
    steps = [record.update for record in read_events(events) if isinstance(record, TrainStep)]
    assert set(steps) == set(range(1, 13)), "metrics came by the channel"


def drive(folder: Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "tests.integration.train_tests.drive", str(folder)]
    return subprocess.run(command, env=clean_environment(), capture_output=True, text=True, timeout=280)


@pytest.mark.slow
def test_kill_9_of_the_driver_inside_a_window_changes_no_byte(tmp_path: Path, never_killed: Path) -> None:
    """The driver dies with its Ray; the same command goes on."""
    (tmp_path / "driver").mkdir()
    first = drive(tmp_path)
    assert first.returncode == -9, first.stderr
    assert not (tmp_path / "out" / "history.json").exists()
    second = drive(tmp_path)
    assert second.returncode == 0, second.stderr
    assert_same_bytes(never_killed, tmp_path / "out")
    assert_same_rows(never_killed, tmp_path / "driver")
