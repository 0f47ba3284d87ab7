"""`python -m cluster.runtime.private.reaper`: waits for a driver to end, however it ends, and removes its Ray's rest.

Ray's own processes die with the driver (PR_SET_PDEATHSIG), but not their children at once, not HAProxy, and nothing
removes the folders. This process outlives the driver by moments: it sits in a session of its own, holds the read end
of a pipe whose write end only the driver has, and does the same work after a clean end, a crash and kill -9.

Invariant: when it exits, no process of the private Ray is alive, its logs lie in the run's folder, and its folders
are gone. It ends two kinds of process and no other: one that carries the marker, and one of the driver's session that
names one of the folders on its command line or holds a file there open.

Covered: one private Ray. Not covered: clusters that were there before (nothing of theirs is ours to remove).
"""

from __future__ import annotations

import argparse
import os
import select
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import IO

import psutil

from cluster.temporary import inherited_locks

MARKER_VARIABLE = "MANTA_PRIVATE_RAY"
PARENT_POLL_S = 0.5  # a forked child of the driver could hold the pipe open: the parent's id is compared too
GRACE_S = 1.0  # Ray's workers end by themselves when their raylet is gone; measured 0.1 to 0.6 s
KILL_DEADLINE_S = 10.0
FINISH_WAIT_S = 30.0
LOG_BYTES_MAX = 50 << 20  # a runaway log stays readable: the newest part is kept


@dataclass(frozen=True)
class PrivatePlace:
    """What belongs to one private Ray."""

    marker: str
    """Value of MARKER_VARIABLE in the environment of its processes."""
    folders: tuple[Path, ...]
    """Folders that its processes name in their command lines or hold open, and that are removed at the end."""
    sessions: Path
    """Folder of Ray's sessions, inside one of `folders`."""
    logs: Path | None
    """Where Ray's logs go."""
    driver: int
    """Process id of the driver, which holds Ray's log files open too and is never ended."""
    session: int
    """Session id of the driver, which Ray's processes share: a pager that reads their logs elsewhere is not ours."""


class Reaper:
    """The driver's handle of its reaper."""

    def __init__(self, place: PrivatePlace) -> None:
        command = [sys.executable, "-m", "cluster.runtime.private.reaper", "--marker", place.marker]
        command += ["--sessions", str(place.sessions), "--session", str(place.session)]
        command += ["--logs", str(place.logs.resolve())] if place.logs else []
        command += [str(folder) for folder in place.folders]
        environment = {name: value for name, value in os.environ.items() if name != MARKER_VARIABLE}
        with inherited_locks(place.folders) as locks:  # a folder is nobody's only when driver and reaper have gone
            self._process = subprocess.Popen(
                command, stdin=subprocess.PIPE, stdout=subprocess.DEVNULL, start_new_session=True, env=environment,
                pass_fds=locks,
            )  # fmt: skip

    def finish(self) -> None:
        """Let it do its work and wait for it; on a crowded machine it may finish after the driver has gone."""
        assert self._process.stdin is not None
        self._process.stdin.close()
        with suppress(subprocess.TimeoutExpired):
            self._process.wait(timeout=FINISH_WAIT_S)


def reap(place: PrivatePlace, *, grace_s: float = GRACE_S) -> list[int]:
    """End the processes of a private Ray, keep its logs, remove its folders; returns the killed process ids."""
    killed = end_processes(place, grace_s=grace_s)
    try:
        if place.logs is not None:
            keep_logs(place.sessions, place.logs)
    finally:  # logs that cannot be kept (a full disk, a run's folder that is gone) must not keep the folders
        for folder in place.folders:
            shutil.rmtree(folder, ignore_errors=True)
    return killed


def end_processes(place: PrivatePlace, *, grace_s: float) -> list[int]:
    """Wait a moment for them to end by themselves, then kill until none is left."""
    start = time.monotonic()
    killed: set[int] = set()
    while found := list(processes_of(place)):
        waited_s = time.monotonic() - start
        if waited_s > KILL_DEADLINE_S:
            break
        if waited_s > grace_s:
            for process in found:
                _kill(process)
                killed.add(process.pid)
        psutil.wait_procs(found, timeout=0.1)
    return sorted(killed)


def processes_of(place: PrivatePlace) -> Iterable[psutil.Process]:
    """Processes that carry the marker, or share the driver's session and name or hold something in the folders."""
    spared = (os.getpid(), place.driver)
    for process in psutil.process_iter():
        if process.pid in spared:
            continue
        try:
            if process.status() != psutil.STATUS_ZOMBIE and _belongs(process, place):
                yield process
        except (psutil.NoSuchProcess, psutil.AccessDenied, OSError):
            continue


def keep_logs(sessions: Path, target: Path) -> None:
    """Copy the logs that are not empty into `target`, which is replaced."""
    sources = [path for path in sorted(sessions.glob("session_*/logs")) if not path.parent.is_symlink()]
    if not sources:
        return
    shutil.rmtree(target, ignore_errors=True)
    for folder in sources:
        for path in sorted(folder.rglob("*")):
            with suppress(FileNotFoundError):  # Ray rotates its logs
                if path.is_file() and not path.is_symlink() and path.stat().st_size:
                    copy = target / path.relative_to(folder)
                    copy.parent.mkdir(parents=True, exist_ok=True)
                    _copy_tail(path, copy)


def wait_for_end_of_parent(pipe: IO[bytes], parent: int) -> None:
    """Block until the pipe is closed at its other end or the parent is another one."""
    while os.getppid() == parent:
        ready, _, _ = select.select([pipe], [], [], PARENT_POLL_S)
        if ready and not pipe.read1(1024):  # type: ignore[attr-defined]
            return


def main() -> int:
    """Parse, wait, reap."""
    parser = argparse.ArgumentParser(prog="python -m cluster.runtime.private.reaper")
    parser.add_argument("--marker", required=True)
    parser.add_argument("--sessions", required=True, type=Path)
    parser.add_argument("--logs", type=Path)
    parser.add_argument("--session", required=True, type=int)
    parser.add_argument("folders", nargs="*", type=Path)
    arguments = parser.parse_args()
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)  # it ends with its driver, not with the driver's terminal
    parent = os.getppid()
    wait_for_end_of_parent(sys.stdin.buffer, parent)
    folders = tuple(arguments.folders)
    reap(PrivatePlace(arguments.marker, folders, arguments.sessions, arguments.logs, parent, arguments.session))
    return 0


def _belongs(process: psutil.Process, place: PrivatePlace) -> bool:
    proc = Path("/proc", str(process.pid))
    if f"{MARKER_VARIABLE}={place.marker}".encode() in (proc / "environ").read_bytes().split(b"\0"):
        return True
    # a process that rewrites its title (Ray's agents and workers) overwrites its environment too: look for the folders
    if os.getsid(process.pid) != place.session:
        return False
    prefixes = tuple(f"{folder}/".encode() for folder in place.folders)
    if any(prefix in (proc / "cmdline").read_bytes() for prefix in prefixes):
        return True
    return any(bytes(link.readlink()).startswith(prefixes) for link in _descriptors(proc))


def _descriptors(proc: Path) -> list[Path]:
    with os.scandir(proc / "fd") as entries:
        return [Path(entry.path) for entry in entries if Path(entry.path).is_symlink()]


def _kill(process: psutil.Process) -> None:
    try:
        process.kill()
    except psutil.NoSuchProcess:
        return


def _copy_tail(source: Path, target: Path) -> None:
    with source.open("rb") as file, target.open("wb") as copy:
        file.seek(max(0, source.stat().st_size - LOG_BYTES_MAX))
        shutil.copyfileobj(file, copy)


if __name__ == "__main__":
    sys.exit(main())
