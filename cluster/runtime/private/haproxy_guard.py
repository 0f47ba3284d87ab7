"""The guard of one HAProxy: a process that puts another HAProxy in its place when it is killed.

Ray Serve finds after three looks that a HAProxy has died, and then starts the proxy's actor anew: seconds in which the
port would refuse everyone. The guard starts a HAProxy with the same configuration at once, with an admin socket of its
own, so that Ray Serve still finds its own one missing. Ray Serve's new one takes over its listening sockets
(haproxy_start.py).

Invariants: no stand-in while another HAProxy of the same configuration lives (a reload), none after Ray Serve has ended
HAProxy itself (its actor ends within `FAREWELL_S`), and never more than one, which ends with its guard.

Not covered: the guard and HAProxy killed at the same moment: then Ray Serve's own looks are what is left.
"""

from __future__ import annotations

import os
import select
import subprocess
from contextlib import suppress
from pathlib import Path

from cluster.runtime.private.haproxy_config import with_admin_socket

FAREWELL_S = 1.5
"""An actor that ends this soon after its HAProxy has ended it: Ray Serve shuts down."""
SUCCESSOR_WAIT_S = 180.0
"""For Ray Serve to start another one, and for that one to answer what the stand-in has accepted (120 s at most)."""
STAND_IN = "stand-in.cfg"
STAND_IN_SOCKET = "spare.sock"  # no longer than the usual one: HAProxy has a limit


def start_guard(haproxy: int, owner: int, config: Path, binary: str) -> None:
    """Start the guard of process `haproxy`, which process `owner` (the proxy's actor) has started."""
    if os.fork():
        os.wait()
        return
    try:
        os.setsid()
        if os.fork() == 0:
            _close_files()
            guard(haproxy, owner, config, binary)
    finally:
        os._exit(0)


def guard(haproxy: int, owner: int, config: Path, binary: str) -> None:
    """Wait for the end of `haproxy`; then stand in for it until there is another one."""
    try:
        owner_file = os.pidfd_open(owner)
        _wait_for_end(os.pidfd_open(haproxy), None)
    except OSError:  # one of them is gone already
        return
    if others(config) or _ended(owner_file):
        return
    stand_in = subprocess.Popen([binary, "-db", "-f", _stand_in_config(config)], stderr=subprocess.DEVNULL)
    try:
        if _wait_for_end(owner_file, FAREWELL_S):
            return
        with suppress(subprocess.TimeoutExpired):
            stand_in.wait(SUCCESSOR_WAIT_S)
    finally:
        stand_in.kill()


def others(config: Path) -> list[int]:
    """Processes that run HAProxy with this configuration."""
    found = []
    for place in Path("/proc").iterdir():
        if place.name.isdigit():
            with suppress(OSError):  # it has ended meanwhile
                words = (place / "cmdline").read_bytes().split(b"\0")
                if Path(os.fsdecode(words[0])).name.startswith("haproxy") and os.fsencode(config) in words:
                    found.append(int(place.name))
    return found


def _stand_in_config(config: Path) -> Path:
    path = config.with_name(STAND_IN)
    text = with_admin_socket(config.read_text(encoding="utf-8"), str(config.with_name(STAND_IN_SOCKET)))
    path.write_text(text, encoding="utf-8")
    return path


def _wait_for_end(pidfd: int, timeout_s: float | None) -> bool:
    """Whether the process ended in time."""
    ready, _, _ = select.select([pidfd], [], [], timeout_s)
    return bool(ready)


def _ended(pidfd: int) -> bool:
    return _wait_for_end(pidfd, 0.0)


def _close_files() -> None:
    """Of the process that Ray Serve started: its log files, and a pipe that would tell it that HAProxy lives on."""
    nothing = os.open(os.devnull, os.O_RDWR)
    for descriptor in (0, 1, 2):
        os.dup2(nothing, descriptor)
    os.closerange(3, 256)
