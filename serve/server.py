"""One endpoint in one process, without Ray: `python -m serve BUNDLE`.

Invariant: the port is answered only when the model is ready, and Ctrl-C answers what was accepted before it ends.
"""

from __future__ import annotations

import asyncio
import resource
import socket
import sys
from contextlib import suppress
from dataclasses import replace
from typing import Any

import uvicorn

from cluster.errors import EndpointError, PortInUseError
from serve.batching.batcher import SWITCH_INTERVAL_S
from serve.config import EndpointConfig
from serve.doors.asgi import AsgiDoor
from serve.doors.http import http_protocol
from serve.doors.predict import predict_app
from serve.handlers.access_log import open_access_log
from serve.handlers.controlplane import ControlPlane
from serve.handlers.dataplane import DataPlane
from serve.models.repository import ModelRepository
from serve.protocol.limits import Limits

BACKLOG = 2048  # uvicorn's default
GRPC_IDLE_S = 90.0  # without a call; clients connect anew by themselves (HAProxy before Ray Serve: an hour)
DESCRIPTORS_OWN = 256  # of files and sockets beside the connections: libraries, gRPC, engine processes
GRACE_S = 30.0  # for accepted requests, from SIGTERM on


async def open_door(config: EndpointConfig, limits: Limits | None = None) -> AsgiDoor:
    """Load every version of `config` and return the door over it. Raises what loading raised."""
    limits = limits or Limits()
    dataplane = DataPlane(ModelRepository(config.name, limits), limits)
    controlplane = ControlPlane(dataplane)
    await controlplane.apply(config)
    return AsgiDoor(dataplane, controlplane, predict_app(dataplane, controlplane))


async def serve_endpoint(
    config: EndpointConfig, listener: socket.socket, grpc_port: int | None = None, limits: Limits | None = None
) -> None:
    """Serve until SIGINT or SIGTERM; over gRPC as well where a port is given (0 takes a free one)."""
    sys.setswitchinterval(SWITCH_INTERVAL_S)
    open_access_log(sys.stderr)
    limits = with_descriptors(limits or Limits())
    door = await open_door(config, limits)
    rpc_server = await open_rpc(door, listener.getsockname()[0], grpc_port) if grpc_port is not None else None
    settings = uvicorn.Config(
        door,
        log_level="warning",
        access_log=False,
        lifespan="off",
        http=http_protocol(limits),
        ws="none",  # a request to upgrade is answered as the plain request that it is
        timeout_graceful_shutdown=int(GRACE_S),
    )
    server = uvicorn.Server(settings)
    host, port = listener.getsockname()[:2]
    sys.stderr.write(f"ready: endpoint '{config.name}' answers at http://{host}:{port}\n")
    with suppress(KeyboardInterrupt):
        await server.serve([listener])
    if rpc_server is not None:
        await rpc_server.stop(GRACE_S)
    await door.dataplane.repository.close()
    if not server.started:
        raise EndpointError(f"Cannot start endpoint '{config.name}'", found="the HTTP server did not start")


def with_descriptors(limits: Limits) -> Limits:
    """The limits with no more connections than this process can open; its own soft limit is raised for them."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = limits.connections + DESCRIPTORS_OWN
    if soft != resource.RLIM_INFINITY and soft < wanted:
        soft = wanted if hard == resource.RLIM_INFINITY else min(wanted, hard)
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    if soft == resource.RLIM_INFINITY or soft >= wanted:
        return limits
    return replace(limits, connections=max(1, soft - DESCRIPTORS_OWN))


async def open_rpc(door: AsgiDoor, host: str, port: int) -> Any:
    """A started grpc.aio server over the same planes. Raises PortInUseError."""
    import grpc

    from serve.doors.rpc import MESSAGE_BYTES_MAX, Rpc, add_to_server

    options = [
        ("grpc.max_receive_message_length", MESSAGE_BYTES_MAX),
        ("grpc.max_send_message_length", -1),
        ("grpc.server_handshake_timeout_ms", int(door.dataplane.limits.head_timeout_s * 1e3)),
        ("grpc.max_connection_idle_ms", int(GRPC_IDLE_S * 1e3)),
        ("grpc.so_reuseport", 0),
    ]
    server = grpc.aio.server(options=options)
    add_to_server(Rpc(door.dataplane, door.controlplane), server)
    try:
        bound = server.add_insecure_port(f"{host}:{port}")
    except RuntimeError as error:
        raise PortInUseError(f"Cannot listen on {host}:{port}", found=str(error)[:200]) from None
    await server.start()
    sys.stderr.write(f"ready: gRPC at grpc://{host}:{bound}\n")
    return server


def run_endpoint(config: EndpointConfig, listener: socket.socket, grpc_port: int | None = None) -> None:
    """`serve_endpoint` on an event loop of its own: uvloop where it is installed."""
    settings = uvicorn.Config(app="", loop="auto")
    with asyncio.Runner(loop_factory=settings.get_loop_factory()) as runner:
        runner.run(serve_endpoint(config, listener, grpc_port))


def listen(host: str, port: int) -> socket.socket:
    """A listening socket; port 0 takes a free one. Raises PortInUseError."""
    listener = socket.socket()
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listener.bind((host, port))
        listener.listen(BACKLOG)
    except OSError as error:
        listener.close()
        raise PortInUseError(
            f"Cannot listen on {host}:{port}",
            found=str(error.strerror or error),
            rule="one program listens on a port",
            remedy="Choose another port, or 0 for a free one.",
        ) from None
    return listener
