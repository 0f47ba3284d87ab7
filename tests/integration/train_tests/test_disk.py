"""A disk that is really full: a small tmpfs under the checkpoints. Needs the right to mount; else it is skipped."""

from __future__ import annotations

import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch

from cluster.errors import DiskFullError
from cluster.telemetry.events import ListSink
from tests.unit.loop_tests.rig import HERE, request_for, run_ranks, write_data
from trainers.launch.fit import launch_fit
from trainers.loop import FitRequest, fit
from trainers.loop.checkpointing.folder import CheckpointFolder, damage

CPU = torch.device("cpu")
Disk = Callable[[int], Path]


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Disk]:
    """`disk(bytes)` mounts a file system of that size; called again it changes the size."""
    folder = tmp_path / "disk"

    def mount(size_bytes: int) -> Path:
        how = "remount," if folder.exists() else ""
        folder.mkdir(exist_ok=True)
        command = ["mount", "-t", "tmpfs", "-o", f"{how}size={size_bytes}", "tmpfs", str(folder)]
        done = subprocess.run(command, capture_output=True, text=True)
        if done.returncode:
            pytest.skip(f"no right to mount: {done.stderr.strip()}")
        return folder

    yield mount
    subprocess.run(["umount", str(folder)], capture_output=True)


def request_on(prepared: Path, checkpoints: Path | None, workers: int = 1) -> FitRequest:
    """Four epochs; a checkpoint is some 150 kB (the width makes it larger than a page)."""
    return request_for(
        prepared,
        batch=12,
        micro=4,
        workers=workers,
        checkpoints=checkpoints,
        factory=f"{HERE}:build_wide",
        epochs=4,
        ema={"decay": 0.9},
        keep="last",
    )


def size_of(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())


def assert_last_good(checkpoints: Path) -> None:
    """Whole ones only, and nothing half done."""
    assert not list(checkpoints.glob("*.partial"))
    names = [path for path in checkpoints.iterdir() if path.is_dir()]
    assert names
    assert [damage(path) for path in names] == [None] * len(names)


def test_full_disk_stops_with_a_clear_error_and_the_last_checkpoint_goes_on_exactly(tmp_path: Path, disk: Disk) -> None:
    prepared = write_data(tmp_path / "data", 36, dtype="FP32")
    whole = fit(request_on(prepared, tmp_path / "roomy"), sink=ListSink(), device=CPU)
    checkpoint_bytes = size_of(tmp_path / "roomy" / "e00004-w00000000")
    place = disk(int(checkpoint_bytes * 2.5))
    request = request_on(prepared, place / "checkpoints")
    with pytest.raises(DiskFullError, match=r"full .* bytes free") as caught:
        fit(request, sink=ListSink(), device=CPU)
    assert caught.value.exit_code == 3
    assert_last_good(place / "checkpoints")
    folder = CheckpointFolder(place / "checkpoints", request.train.checkpoint, request.train.best)
    assert folder.newest_valid() == ("e00002-w00000000", [])
    disk(checkpoint_bytes * 8)
    resumed = fit(request, sink=ListSink(), device=CPU)
    assert all(torch.equal(resumed.weights[name], whole.weights[name]) for name in whole.weights)
    assert [event.metrics for event in resumed.history] == [event.metrics for event in whole.history]


def _fit(rank: int, prepared: str, checkpoints: str) -> None:
    fit(request_on(Path(prepared), Path(checkpoints), workers=2), sink=ListSink(), device=CPU)


def test_full_disk_of_rank_0_stops_all_ranks_together(tmp_path: Path, disk: Disk) -> None:
    prepared = write_data(tmp_path / "data", 36, dtype="FP32")
    place = disk(200_000)
    writer, other = run_ranks(2, _fit, tmp_path / "ranks", str(prepared), str(place / "checkpoints"), may_raise=True)
    assert writer[:2] == ("raised", "DiskFullError")
    assert other[:2] == ("raised", "PeerFailedError")
    assert "is full" in other[2]


@pytest.mark.slow
def test_full_disk_under_ray_train_is_raised_as_itself_and_not_tried_again(
    ray_local: str, tmp_path: Path, disk: Disk
) -> None:
    prepared = write_data(tmp_path / "data", 36, dtype="FP32")
    place = disk(200_000)
    with pytest.raises(DiskFullError) as caught:
        launch_fit(
            request_on(prepared, place / "checkpoints"), events=tmp_path / "events.jsonl", folder=tmp_path / "out"
        )
    assert caught.value.exit_code == 3
    assert "restart" not in (tmp_path / "events.jsonl").read_text()
