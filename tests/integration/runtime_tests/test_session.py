"""A private Ray leaves nothing behind, however its driver ends, and lets nobody else in."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil
import pytest

from cluster.errors import ClusterUnreachableError
from cluster.runtime.join.check import check_cluster

SCRIPT = "tests.integration.runtime_tests.driver_script"
START_S = 90.0
GONE_S = 30.0


def start_driver(tmp_path: Path, temporary: Path, mode: str) -> tuple[subprocess.Popen[str], dict]:
    home = tmp_path / "home"
    home.mkdir()
    environment = {name: value for name, value in os.environ.items() if not name.startswith("RAY_A")}
    driver = subprocess.Popen(
        [sys.executable, "-m", SCRIPT, str(tmp_path / "ray-logs"), mode],
        stdout=subprocess.PIPE,
        text=True,
        start_new_session=True,
        env={**environment, "HOME": str(home), "TMPDIR": str(temporary)},
        cwd=Path(__file__).parents[3],
    )
    assert driver.stdout is not None
    line = driver.stdout.readline()
    assert line, f"the driver ended with {driver.wait()} before it said anything"
    return driver, json.loads(line)


@pytest.fixture
def temporary() -> Iterator[Path]:
    """A temporary directory whose path is short enough for Ray's sockets."""
    with tempfile.TemporaryDirectory(prefix="m-", dir="/tmp") as folder:
        yield Path(folder)


def within(seconds: float, condition: Callable[[], bool]) -> bool:
    deadline = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > deadline:
            return False
        psutil.wait_procs([], timeout=0.1)
        time.sleep(0.05)
    return True


def alive(pids: list[int]) -> list[str]:
    found = []
    for pid in pids:
        try:
            process = psutil.Process(pid)
            if process.status() != psutil.STATUS_ZOMBIE:
                found.append(f"{pid} {' '.join(process.cmdline())[:80]}")
        except psutil.NoSuchProcess:
            continue
    return found


def listening(ports: list[int], folders: list[str]) -> list[str]:
    """Ports on which a process of this Ray still listens; another Ray may hold 8265 or 52365 by now."""
    found = []
    for connection in psutil.net_connections("tcp"):
        if connection.status != psutil.CONN_LISTEN or connection.laddr.port not in ports:
            continue
        try:
            files = [file.path for file in psutil.Process(connection.pid).open_files()]
        except (psutil.NoSuchProcess, TypeError):
            continue
        if any(path.startswith(f"{folder}/") for path in files for folder in folders):
            found.append(f"{connection.laddr.port} of {connection.pid}")
    return found


@pytest.mark.parametrize("end", ["return", "interrupt", "kill"])
def test_nothing_is_left_behind_however_the_driver_ends(tmp_path: Path, temporary: Path, end: str) -> None:
    driver, was = start_driver(tmp_path, temporary, "return" if end == "return" else "wait")
    try:
        assert len(was["pids"]) >= 6
        assert was["ports"]
        assert was["folders"]
        if end != "return":
            with pytest.raises(ClusterUnreachableError, match="demands a token"):
                check_cluster(was["address"], token=None)
            driver.send_signal(signal.SIGINT if end == "interrupt" else signal.SIGKILL)
        driver.wait(timeout=GONE_S)
    finally:
        if driver.poll() is None:
            os.killpg(driver.pid, signal.SIGKILL)
        assert driver.stdout is not None
        driver.stdout.close()
    assert within(GONE_S, lambda: not alive(was["pids"])), alive(was["pids"])
    assert within(GONE_S, lambda: not any(Path(folder).exists() for folder in was["folders"])), was["folders"]
    assert within(GONE_S, lambda: not list(temporary.iterdir())), list(temporary.iterdir())
    assert not [path for path in was["shared"] if Path(path).exists()]
    assert not listening(was["ports"], was["folders"])
    assert (tmp_path / "ray-logs" / "raylet.out").stat().st_size > 0
    assert not (tmp_path / "home" / ".ray").exists(), "a token was written into the user's home"
