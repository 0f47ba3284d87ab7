"""The reaper ends what carries its marker or holds its folders, keeps the logs, and touches nothing else."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import psutil
import pytest

from cluster.runtime.private.reaper import MARKER_VARIABLE, PrivatePlace, Reaper, keep_logs, processes_of, reap

SLEEP = "import sys, time; print('up', flush=True); time.sleep(60)"


@pytest.fixture
def stack() -> Iterator[ExitStack]:
    with ExitStack() as opened:
        yield opened


def sleeper(
    stack: ExitStack, code: str = SLEEP, *arguments: str, apart: bool = False, **env: str
) -> subprocess.Popen[str]:
    process = subprocess.Popen(
        [sys.executable, "-c", code, *arguments],
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, **env},
        start_new_session=apart,
    )
    stack.callback(process.stdout.close)  # type: ignore[union-attr]
    stack.callback(process.wait)
    stack.callback(process.kill)
    assert process.stdout is not None
    assert process.stdout.readline() == "up\n"
    return process


def place(tmp_path: Path, *, driver: int = 0) -> PrivatePlace:
    folder = tmp_path / "private"
    (folder / "r" / "session_1" / "logs").mkdir(parents=True)
    return PrivatePlace("marker-1", (folder,), folder / "r", tmp_path / "ray-logs", driver, os.getsid(0))


def test_marked_named_and_holding_processes_end_and_others_live(tmp_path: Path, stack: ExitStack) -> None:
    where = place(tmp_path)
    held = where.folders[0] / "held.log"
    opening = f"f = open({str(held)!r}, 'w'); " + SLEEP
    marked = sleeper(stack, **{MARKER_VARIABLE: "marker-1"})
    named = sleeper(stack, SLEEP, f"--log-dir={where.folders[0]}/r")
    holding = sleeper(stack, "import os; os.environ.clear(); " + opening)
    other_marker = sleeper(stack, **{MARKER_VARIABLE: "marker-10"[:8] + "x"})
    stranger = sleeper(stack)
    held.touch()
    reader = sleeper(stack, f"f = open({str(held)!r}); " + SLEEP, apart=True)
    assert {process.pid for process in processes_of(where)} == {marked.pid, named.pid, holding.pid}
    assert reap(where, grace_s=0.0) == sorted([marked.pid, named.pid, holding.pid])
    assert all(not psutil.pid_exists(p.pid) or p.wait(timeout=5) for p in (marked, named, holding))
    assert stranger.poll() is None
    assert other_marker.poll() is None
    assert reader.poll() is None, "somebody who reads a log is not ours"
    assert not where.folders[0].exists()


def test_the_driver_is_spared(tmp_path: Path, stack: ExitStack) -> None:
    driver = sleeper(stack, **{MARKER_VARIABLE: "marker-1"})
    assert list(processes_of(place(tmp_path, driver=driver.pid))) == []


def test_logs_that_hold_something_are_kept(tmp_path: Path) -> None:
    where = place(tmp_path)
    logs = where.sessions / "session_1" / "logs"
    (logs / "raylet.out").write_text("line", encoding="utf-8")
    (logs / "empty.err").touch()
    (logs / "old").mkdir()
    (logs / "old" / "gcs.out").write_text("line", encoding="utf-8")
    (where.sessions / "session_latest").symlink_to(where.sessions / "session_1")
    (tmp_path / "ray-logs").mkdir()
    (tmp_path / "ray-logs" / "from-before").touch()
    keep_logs(where.sessions, tmp_path / "ray-logs")
    kept = {path.relative_to(tmp_path / "ray-logs").as_posix() for path in (tmp_path / "ray-logs").rglob("*")}
    assert kept == {"raylet.out", "old", "old/gcs.out"}


def test_logs_that_cannot_be_kept_do_not_keep_the_folders(tmp_path: Path) -> None:
    where = place(tmp_path)
    (where.sessions / "session_1" / "logs" / "raylet.out").write_text("line", encoding="utf-8")
    (tmp_path / "ray-logs").write_text("a file is in the way", encoding="utf-8")
    with pytest.raises(OSError):
        reap(where, grace_s=0.0)
    assert not where.folders[0].exists()


def test_it_works_when_its_driver_is_killed(tmp_path: Path, stack: ExitStack) -> None:
    where = place(tmp_path)
    code = (
        "import os, time; from pathlib import Path; from cluster.runtime.private.reaper import *; "
        f"r = Reaper(PrivatePlace('marker-1', (Path({str(where.folders[0])!r}),), Path({str(where.sessions)!r}), None, "
        "os.getpid(), os.getsid(0))); print('up', flush=True); time.sleep(60)"
    )
    driver = sleeper(stack, code)
    (watcher,) = psutil.Process(driver.pid).children()
    assert os.getsid(watcher.pid) != os.getsid(driver.pid), "a signal to the driver's group must not reach it"
    driver.kill()
    driver.wait()
    watcher.wait(timeout=20)
    assert not where.folders[0].exists()


def test_a_clean_end_waits_for_it(tmp_path: Path) -> None:
    where = place(tmp_path, driver=os.getpid())
    Reaper(where).finish()
    assert not where.folders[0].exists()
