"""HAProxy as Ray Serve starts it, with backends, an owner process and requests as bytes: for the tests beside."""

from __future__ import annotations

import http.client
import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import psutil

from cluster.runtime.ports import free_ports
from cluster.runtime.private.haproxy import LAUNCHER, haproxy_environment
from cluster.runtime.private.haproxy_guard import STAND_IN, others

DEADLINE_S = 30.0
LATE_S = 2.5  # more than a reader's time
never = threading.Event()
MAXCONN = 16  # the limit is seven eighths: 14
PREFIX = "/app"


class Echo(BaseHTTPRequestHandler):
    """Answers the length of the body: `/app/late` after `LATE_S`, `/app/large` with 64 MiB behind it."""

    protocol_version = "HTTP/1.1"
    cut = threading.Event()
    """A large answer was not taken to its end."""

    def do_GET(self) -> None:
        body = self.rfile.read(int(self.headers.get("content-length", 0)))
        if self.path.endswith("/late"):
            never.wait(LATE_S)
        answer = json.dumps({"bytes": len(body)}).encode()
        more = b" " * (64 << 20) if self.path.endswith("/large") else b""
        self.send_response(200)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(answer) + len(more)))
        self.end_headers()
        try:
            self.wfile.write(answer + more)
        except ConnectionError:
            Echo.cut.set()
            self.close_connection = True

    do_POST = do_GET

    def log_message(self, *_: object) -> None:
        """Nothing on stderr."""


class Dying(Echo):
    """Takes requests and ends without a word, as a replica that is killed."""

    def do_POST(self) -> None:
        self.rfile.read(int(self.headers.get("content-length", 0)))
        self.close_connection = True


class Holding(Echo):
    """Ray Serve's fallback proxy while an endpoint has no replica: well, and without an answer."""

    def do_POST(self) -> None:
        never.wait(DEADLINE_S)
        self.close_connection = True


class Backend(ThreadingHTTPServer):
    daemon_threads = True
    request_queue_size = 128

    def handle_error(self, *_: object) -> None:
        """A connection that HAProxy has reset."""


@contextmanager
def backend(kind: type[Echo]) -> Iterator[int]:
    """The port of a backend."""
    with Backend(("127.0.0.1", 0), kind) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True)
        thread.start()
        try:
            yield server.server_address[1]
        finally:
            server.shutdown()


def ray_serves_configuration(
    folder: Path, ports: list[int], servers: list[int] | None, spare: int | None = None, maxconn: int = MAXCONN
) -> Path:
    """The file for an endpoint with these servers; None: the controller has told nothing yet."""
    from ray.serve._private.haproxy import BackendConfig, HAProxyApi, HAProxyConfig, ServerConfig
    from ray.serve.config import HTTPOptions, gRPCOptions

    public, grpc, stats, metrics = ports
    config = HAProxyConfig(
        socket_path=str(folder / "admin.sock"),
        server_state_base=str(folder),
        server_state_file=str(folder / "state"),
        maxconn=maxconn,
        nbthread=1,
        stats_port=stats,
        metrics_port=metrics,
        metrics_enabled=False,
        retry_on="conn-failure empty-response",
        balance_algorithm="roundrobin",
        health_check_inter="200ms",
        has_received_routes=servers is not None,
        has_received_servers=bool(servers),
        http_options=HTTPOptions(host="127.0.0.1", port=public),
        grpc_options=gRPCOptions(
            port=grpc, grpc_servicer_functions=["serve.proto.health_pb2_grpc.add_HealthServicer_to_server"]
        ),
    )
    made = [ServerConfig(f"replica{index}", "127.0.0.1", port) for index, port in enumerate(servers or [])]
    fallback = ServerConfig("fallback", "127.0.0.1", spare) if spare is not None else None
    app = BackendConfig(name="app", path_prefix=PREFIX, app_name="app", servers=made, fallback_server=fallback)
    path = folder / "haproxy.cfg"
    HAProxyApi(config, {} if servers is None else {"app": app}, str(path))._generate_config_file_internal()
    return path


OWNER = "import signal, subprocess, sys; subprocess.Popen(sys.argv[1:]).wait(); signal.pause()"


@dataclass
class Proxy:
    """A HAProxy with its owner."""

    ports: list[int]
    config: Path
    environment: dict[str, str]
    owner: subprocess.Popen[bytes]

    @property
    def port(self) -> int:
        """The public one."""
        return self.ports[0]

    def process(self) -> psutil.Process:
        """HAProxy itself."""
        (found,) = others(self.config)
        return psutil.Process(found)

    def stand_ins(self) -> list[int]:
        return others(self.config.with_name(STAND_IN))


def write_configuration(made: Proxy, servers: list[int] | None) -> None:
    """What Ray Serve writes before it starts another HAProxy."""
    ray_serves_configuration(made.config.parent, made.ports, servers)


def start_owner(config: Path, environment: dict[str, str], *words: str) -> subprocess.Popen[bytes]:
    command = [sys.executable, "-c", OWNER, str(config.parent / LAUNCHER), "-db", "-f", str(config), "-dR", *words]
    with (config.parent / "stderr").open("ab") as errors:
        return subprocess.Popen(command, env=environment, stderr=errors)


SHORT = {
    "MANTA_HEAD_TIMEOUT_S": "1",
    "MANTA_BODY_TIMEOUT_S": "2",
    "MANTA_READING_TIMEOUT_S": "1",
    "MANTA_REPLICA_WAIT_S": "1",
}


@contextmanager
def haproxy(
    folder: Path,
    servers: list[int] | None,
    spare: int | None = None,
    *,
    maxconn: int = MAXCONN,
    limits: Mapping[str, str] = SHORT,
) -> Iterator[Proxy]:
    """As a private Ray starts it, and answering."""
    ports = free_ports(4)
    config = ray_serves_configuration(folder, ports, servers, spare, maxconn)
    environment = {**os.environ, **haproxy_environment(folder), **limits}
    owner = start_owner(config, environment)
    try:
        eventually(lambda: ask(ports[0], b"GET /-/routes HTTP/1.1\r\nHost: x\r\n\r\n")[0] != 0)
        yield Proxy(ports, config, environment, owner)
    finally:
        owner.kill()
        owner.wait()
        for pid in (*others(config), *others(config.with_name(STAND_IN))):
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        eventually(lambda: not others(config) and not others(config.with_name(STAND_IN)))
    errors = (folder / "stderr").read_text().splitlines()
    assert not [line for line in errors if "ALERT" in line and "FD limit" not in line], errors


def eventually(condition: Callable[[], bool]) -> float:
    """The seconds until it is true."""
    started = time.monotonic()
    while not condition():
        assert time.monotonic() - started < DEADLINE_S
        time.sleep(0.01)
    return time.monotonic() - started


def connect(port: int, data: bytes = b"") -> socket.socket:
    found = socket.create_connection(("127.0.0.1", port), timeout=DEADLINE_S)
    found.sendall(data)
    return found


def read(connection: socket.socket) -> tuple[int, dict[str, str], bytes]:
    """One answer; status 0 for a connection that ends without one."""
    answer = http.client.HTTPResponse(connection)
    try:
        answer.begin()
        return answer.status, {name.lower(): value for name, value in answer.getheaders()}, answer.read()
    except (http.client.BadStatusLine, ConnectionError):
        return 0, {}, b""


def ask(port: int, data: bytes) -> tuple[int, dict[str, str], bytes]:
    try:
        with connect(port, data) as connection:
            return read(connection)
    except ConnectionError:
        return 0, {}, b""


def post(num_bytes: int, sent: int | None = None) -> bytes:
    head = f"POST /app/x HTTP/1.1\r\nHost: x\r\nContent-Length: {num_bytes}\r\n\r\n".encode()
    return head + b"x" * (num_bytes if sent is None else sent)
