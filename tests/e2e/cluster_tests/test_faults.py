"""Ctrl-C and lost processes during training, through the real command: nothing stays behind, the run goes on later."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import psutil
import pytest

from cluster.store.locks import is_locked
from cluster.store.run_folder import RunFolder
from cluster.telemetry.events import EpochFinished, RunFailed, RunFinished, read_events
from tests.e2e.cluster_tests.head import clean_environment, wait_for

SPEC = """
version: 1
name: tiny
data: {source: {kind: sklearn, dataset: digits}}
model: {family: mlp}
train: {epochs: 60, workers: 2, batch_size_global: 64}
search: null
compress: null
serve: null
"""
START_S = 200.0  # first epochs on a busy machine
END_S = 60.0


@pytest.fixture
def run(tmp_path: Path) -> RunFolder:
    (tmp_path / "tiny.yaml").write_text(SPEC, encoding="utf-8")
    return RunFolder(tmp_path / "runs" / "tiny")


@contextmanager
def manta_run(run: RunFolder, *flags: str) -> Iterator[subprocess.Popen[str]]:
    """`manta run --until train` in a process group of its own; whatever happens, nothing outlives the test."""
    command = [sys.executable, "-c", "from cluster.cli import main; main()", "run", "tiny.yaml"]
    with subprocess.Popen(
        [*command, "--runs-dir", str(run.path.parent), "--until", "train", "--json", *flags],
        cwd=run.path.parents[1],
        env=clean_environment(),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    ) as process:
        try:
            yield process
        finally:
            for each in [process.pid, int(run.read_state().get("pid", 0))]:
                if each and psutil.pid_exists(each):
                    os.killpg(each, signal.SIGKILL)


def everything(run: RunFolder, process: subprocess.Popen[str]) -> tuple[list[psutil.Process], set[Path]]:
    """All processes of a run whose workers have started, and the folders of its private Ray."""
    wait_for(lambda: run.read_state().get("pid") and len(train_workers(run)) == 2, START_S, process)
    tree = driver_tree(run)
    folders = private_folders(tree)
    assert len(tree) > 8
    assert folders
    return tree, folders


def press_twice(process: subprocess.Popen[str]) -> None:
    """Ctrl-C and, when the command has not ended by then, another: two that come at once are one to the kernel."""
    for wait_s in (0.2, END_S):
        process.send_signal(signal.SIGINT)
        with suppress(subprocess.TimeoutExpired):
            process.wait(timeout=wait_s)
            return


def epochs(run: RunFolder) -> list[int]:
    return [event.epoch for event in read_events(run.events) if isinstance(event, EpochFinished)]


def driver_tree(run: RunFolder) -> list[psutil.Process]:
    """The driver, Ray, the workers, and the reaper."""
    driver = psutil.Process(run.read_state()["pid"])
    return [driver, *driver.children(recursive=True)]


def alive(tree: list[psutil.Process]) -> list[psutil.Process]:
    return [each for each in tree if each.is_running() and each.status() != psutil.STATUS_ZOMBIE]


def private_folders(tree: list[psutil.Process]) -> set[Path]:
    found = set()
    for each in tree:
        try:
            found |= {Path(*Path(file.path).parts[:3]) for file in each.open_files() if "/manta-" in file.path}
        except psutil.NoSuchProcess:
            continue
    return found


def train_workers(run: RunFolder) -> list[psutil.Process]:
    found = []
    for each in driver_tree(run):
        try:
            found += [each] if "RayTrainWorker" in " ".join(each.cmdline()) else []
        except psutil.NoSuchProcess:
            continue
    return found


@pytest.mark.soak  # 60 s; kill -9 and, in test_session, Ctrl-C of the driver are asked by default
def test_ctrl_c_leaves_nothing_behind_and_the_same_command_goes_on(run: RunFolder) -> None:
    with manta_run(run) as process:
        tree, folders = everything(run, process)
        wait_for(lambda: len(epochs(run)) >= 2, START_S, process)
        process.send_signal(signal.SIGINT)
        stdout, stderr = process.communicate(timeout=END_S)
    assert process.returncode == 1
    assert json.loads(stdout)["error"]["code"] == "INTERRUPTED"
    assert "Traceback" not in stderr
    wait_for(lambda: not alive(tree), END_S)
    assert not [folder for folder in folders if folder.exists()]
    assert not is_locked(run.lock)
    assert run.read_state()["state"] == "interrupted"
    done = epochs(run)
    assert done[-1] < 60

    with manta_run(run) as process:
        stdout, stderr = process.communicate(timeout=START_S)
    assert process.returncode == 0, stderr
    later = epochs(run)[len(done) :]
    assert later[0] > 1, "training started anew instead of at its last checkpoint"
    assert later[-1] == 60
    assert isinstance(read_events(run.events)[-1], RunFinished)


@pytest.mark.parametrize(
    # each case kills a Ray and so needs one of its own: 35 s; the first Ctrl-C and its sequel are tested above
    "how",
    [pytest.param("second Ctrl-C", marks=pytest.mark.soak), "kill -9 of the driver"],
)
def test_killing_leaves_nothing_behind(run: RunFolder, how: str) -> None:
    with manta_run(run, "--set", "train.epochs=100000") as process:
        tree, folders = everything(run, process)
        wait_for(lambda: epochs(run), START_S, process)
        if how == "second Ctrl-C":
            press_twice(process)
        else:
            tree[0].kill()
        _, stderr = process.communicate(timeout=END_S)
    assert process.returncode == 1
    assert "Traceback" not in stderr
    wait_for(lambda: not alive(tree), END_S)
    wait_for(lambda: not [folder for folder in folders if folder.exists()], END_S)
    assert not is_locked(run.lock)


@pytest.mark.soak  # 45 s; the launcher's own tests kill a worker on the shared Ray
def test_a_killed_worker_ends_in_a_finished_run_or_one_clear_sentence(run: RunFolder) -> None:
    with manta_run(run) as process:
        tree, _ = everything(run, process)
        wait_for(lambda: epochs(run), START_S, process)
        train_workers(run)[0].kill()
        stdout, stderr = process.communicate(timeout=START_S)
    assert "Traceback" not in stderr
    last = read_events(run.events)[-1]
    if process.returncode == 0:
        assert isinstance(last, RunFinished)
        assert epochs(run)[-1] == 60
    else:
        assert isinstance(last, RunFailed)
        assert json.loads(stdout)["error"]["code"] == "WORKER"
    wait_for(lambda: not alive(tree), END_S)
