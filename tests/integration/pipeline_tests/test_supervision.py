"""A driver ends, with its worker, when whoever started it is killed, when another one draws, and when it is asked to.

Real processes, no Ray: one worker trains in a process of its own.
"""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import psutil
import pytest

from cluster.atomic import write_json
from cluster.cli.local_runs import stop_run
from cluster.pipeline.supervision import ASKED, ORPHAN_GRACE_S, ORPHANED, POLL_S
from cluster.store.locks import is_locked
from cluster.store.run_folder import RunFolder
from cluster.telemetry.events import EpochFinished, Message, RunFinished, read_events
from tests.e2e.cluster_tests.head import clean_environment, wait_for

SPEC = """
version: 1
data: {source: {kind: sklearn, dataset: digits}}
model: {family: mlp}
train: {epochs: 100000, workers: 1, batch_size_global: 512, checkpoint: {every_updates: 3}}
search: null
compress: null
serve: null
"""
START_S = 120.0
END_S = 2 * (POLL_S + ORPHAN_GRACE_S)  # on an idle machine half of it, below the 10 s that are promised


@pytest.fixture
def run(tmp_path: Path) -> RunFolder:
    (tmp_path / "long.yaml").write_text(SPEC, encoding="utf-8")
    return RunFolder(tmp_path / "runs" / "long")


@contextmanager
def started(run: RunFolder, line: str) -> Iterator[tuple[subprocess.Popen[bytes], list[psutil.Process]]]:
    """A shell that runs `manta run`, once it trains; driver and worker. They do not outlive the test."""
    line = f'"{sys.executable}" -c "from cluster.cli import main; main()" run long.yaml --until train {line}'
    before = len(epochs(run))
    shell = subprocess.Popen(
        ["sh", "-c", f"{line}; exit $?"],
        cwd=run.path.parents[1], env=clean_environment(), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
    )  # fmt: skip
    tree = [psutil.Process(shell.pid)]
    try:
        wait_for(lambda: len(epochs(run)) >= before + 2 or shell.poll() is not None, START_S)
        assert shell.poll() is None, run.log.read_text(encoding="utf-8")
        driver = psutil.Process(run.read_state()["pid"])
        tree += [driver, *driver.children(recursive=True)]
        yield shell, tree[1:]
    finally:
        for process in [*(psutil.Process(shell.pid).children(recursive=True) if shell.poll() is None else []), *tree]:
            if process.is_running():
                process.kill()
        shell.wait()


def epochs(run: RunFolder) -> list[int]:
    return [event.epoch for event in read_events(run.events) if isinstance(event, EpochFinished)]


def alive(tree: list[psutil.Process]) -> list[psutil.Process]:
    return [each for each in tree if each.is_running() and each.status() != psutil.STATUS_ZOMBIE]


def said(run: RunFolder) -> list[str]:
    return [event.text for event in read_events(run.events) if isinstance(event, Message)]


def test_a_run_ends_with_the_killed_process_that_supervised_it_and_goes_on_later(run: RunFolder) -> None:
    with started(run, "--supervised") as (shell, tree):
        assert len(tree) >= 2
        shell.kill()
        wait_for(lambda: not alive(tree), END_S)
    assert ORPHANED in said(run)
    assert run.read_state()["state"] == "interrupted"
    assert not is_locked(run.lock)
    before = epochs(run)
    with started(run, "") as (_, tree):
        assert epochs(run)[len(before)] > 1, "training started anew instead of at its last checkpoint"
        next(each for each in psutil.Process(tree[0].pid).parents() if "run" in each.cmdline()).kill()
        wait_for(lambda: not alive(tree), END_S)


def test_a_driver_ends_when_another_one_works_in_its_folder(run: RunFolder) -> None:
    """As on a file system whose locks do not reach another host: the lock of the first is another file."""
    with started(run, "") as (_, tree):
        run.lock.unlink()
        second = subprocess.run(
            [sys.executable, "-m", "cluster.pipeline", str(run.path), "--until", "prepare"],
            env=clean_environment(), capture_output=True, text=True, timeout=START_S, check=False,
        )  # fmt: skip
        assert second.returncode == 0, second.stderr
        wait_for(lambda: not alive(tree), END_S)
    assert run.read_state()["state"] == "done", "the first has written nothing over it"
    assert [event.kind for event in read_events(run.events)].count("run_failed") == 0
    assert any(isinstance(event, RunFinished) for event in read_events(run.events))


def test_a_driver_of_another_host_is_asked_through_the_folder(run: RunFolder) -> None:
    with started(run, "") as (_, tree):
        write_json(run.state, {**run.read_state(), "host": "elsewhere"})
        assert stop_run(run) is True
        wait_for(lambda: not alive(tree), END_S)
    assert ASKED in said(run)
    assert run.read_state()["state"] == "interrupted"
