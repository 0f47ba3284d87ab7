"""A real `ray start --head` with token authentication, on ports and in a folder of its own."""

from __future__ import annotations

import os
import secrets
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import psutil

START_S = 120.0
BIN = Path(sys.executable).parent


@dataclass(frozen=True)
class Head:
    """A running head."""

    process: subprocess.Popen[bytes]
    gcs: str
    url: str
    token: str
    runs: Path

    def environment(self, **more: str) -> dict[str, str]:
        """The environment of a user of this cluster."""
        return {**clean_environment(), "RAY_AUTH_TOKEN": self.token, **more}


def clean_environment() -> dict[str, str]:
    """This environment without anything that points at a Ray, one thread a process, and with `manta` on the path."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("RAY_A", "MANTA_"))}
    return {**kept, "PATH": f"{BIN}:{kept.get('PATH', '')}", "OMP_NUM_THREADS": "1"}


def free_ports(count: int) -> list[int]:
    with ExitStack() as stack:
        sockets = [stack.enter_context(socket.socket()) for _ in range(count)]
        for each in sockets:
            each.bind(("127.0.0.1", 0))
        return [each.getsockname()[1] for each in sockets]


@contextmanager
def start_head(folder: Path, num_cpus: int = 8, port: int | None = None, **variables: str) -> Iterator[Head]:
    """Start a head and end it with all its processes. `folder` receives home, runs and log."""
    gcs, dashboard, agent, client = free_ports(4)
    gcs = port or gcs
    token = secrets.token_hex(32)
    runs = folder / "runs"
    temporary = tempfile.mkdtemp(prefix="mh-", dir="/tmp")
    flags = {
        "port": gcs,
        "dashboard-port": dashboard,
        "dashboard-agent-listen-port": agent,
        "ray-client-server-port": client,
        "node-ip-address": "127.0.0.1",
        "temp-dir": temporary,
        "min-worker-port": 0,
        "max-worker-port": 0,
        "num-cpus": num_cpus,
        "object-store-memory": 200 << 20,
    }
    home = folder / "home"
    home.mkdir(exist_ok=True)
    own = {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": token, "HOME": str(home), "MANTA_RUNS_DIR": str(runs)}
    own["RAY_GRACEFUL_SHUTDOWN_DRAIN_TIMEOUT_S"] = "0"  # nobody is being served when the test ends
    with (folder / "head.log").open("wb") as log:
        process = subprocess.Popen(
            [
                sys.executable,
                "-m",
                "cluster.runtime.node",
                "ray",
                "start",
                "--head",
                "--block",
                *(f"--{name}={value}" for name, value in flags.items()),
            ],
            env={**clean_environment(), **own, **variables},
            stdout=log,
            stderr=log,
            start_new_session=True,
        )
    try:
        head = Head(process, f"127.0.0.1:{gcs}", f"http://127.0.0.1:{dashboard}", token, runs)
        _wait_until_ready(head, folder / "head.log")
        yield head
    finally:
        end_process(process)
        subprocess.run(["rm", "-rf", temporary], check=False)


def wait_for(condition: Callable[[], Any], seconds: float, process: subprocess.Popen[str] | None = None) -> Any:
    """Wait until the condition holds; fail when the time is over, or when `process` has ended."""
    deadline = time.monotonic() + seconds
    while not (found := condition()):
        assert time.monotonic() < deadline, "it did not happen in time"
        assert process is None or process.poll() is None, process.communicate()
        time.sleep(0.05)
    return found


def _wait_until_ready(head: Head, log: Path) -> None:
    """Until a job could be taken: the head's dashboard and the node's agent both answer."""
    deadline = time.monotonic() + START_S
    while time.monotonic() < deadline:
        assert head.process.poll() is None, log.read_text()
        try:
            answer = httpx.get(f"{head.url}/api/jobs/", headers={"Authorization": f"Bearer {head.token}"}, timeout=5)
            if answer.status_code == 200:
                return
        except httpx.HTTPError:
            pass
        time.sleep(0.2)
    raise AssertionError(f"the head did not start: {log.read_text()}")


def end_process(process: subprocess.Popen[bytes]) -> None:
    """End a node with all that it started."""
    tree = psutil.Process(process.pid).children(recursive=True) if process.poll() is None else []
    process.send_signal(signal.SIGTERM)
    try:
        process.wait(timeout=20)
    except subprocess.TimeoutExpired:
        process.kill()
    _, alive = psutil.wait_procs(tree, timeout=10)
    for each in alive:
        each.kill()
