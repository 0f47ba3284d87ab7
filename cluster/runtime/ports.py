"""Ports to serve on: whether one is free, and which are when the user names none.

HAProxy listens with SO_REUSEPORT, so that a second one on the same port starts without an error and takes half of
the requests; this check, without that option, is the only one there is.
"""

from __future__ import annotations

import errno
import random
import socket
from contextlib import ExitStack

import psutil

from cluster.errors import PortInUseError

CHOSEN_PORTS = range(20_000, 30_000)
"""Where a port is chosen: above those of Ray's workers (10002 to 19999), below Kubernetes' node ports (30000) and the
local ports of connections that programs open (32768 and more on Linux), one of which could take a port between its
choice and its use."""
TRIES = 100


def claim_port(host: str, port: int) -> int:
    """`port`, or a free one for 0. Raises PortInUseError that names the holder where it can be known."""
    with socket.socket() as probe:
        try:
            if not port:
                return _bind_chosen(probe, host)
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # TIME_WAIT of an earlier run is no holder
            probe.bind((host, port))
        except OSError as error:
            holder = _holder(port) if port else ""
            raise PortInUseError(
                f"Cannot serve on {host}:{port}",
                found=f"the port is held by {holder}" if holder else str(error.strerror or error),
                rule="one program listens on a port",
                remedy="Stop that program, or set serve.port to another port (0 takes a free one).",
                details={"port": port, "holder": holder},
            ) from None
        return int(probe.getsockname()[1])


def free_ports(num_ports: int) -> list[int]:
    """Different TCP ports that are free now."""
    with ExitStack() as stack:
        sockets = [stack.enter_context(socket.socket()) for _ in range(num_ports)]
        return [_bind_chosen(each, "127.0.0.1") for each in sockets]


def _bind_chosen(probe: socket.socket, host: str) -> int:
    """Bind to a free port of `CHOSEN_PORTS`, or to the system's choice where none is found. Raises OSError."""
    for port in random.SystemRandom().sample(CHOSEN_PORTS, min(TRIES, len(CHOSEN_PORTS))):
        try:
            probe.bind((host, port))
        except OSError as error:
            if error.errno != errno.EADDRINUSE:
                raise  # the host, which no port mends
            continue
        return port
    probe.bind((host, 0))
    return int(probe.getsockname()[1])


def _holder(port: int) -> str:
    """`name (pid n)` of the process that listens on a port; empty when it cannot be seen."""
    try:
        for connection in psutil.net_connections(kind="tcp"):
            if (
                connection.status == psutil.CONN_LISTEN
                and connection.laddr
                and connection.laddr[1] == port
                and connection.pid
            ):
                return f"{psutil.Process(connection.pid).name()} (pid {connection.pid})"
    except (psutil.Error, OSError):
        return ""
    return ""
