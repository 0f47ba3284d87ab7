"""cluster/runtime/private/haproxy.sh over the configuration that Ray Serve writes: the bundled HAProxy, without Ray.

The backend answers the length of what it got; the limits are shortened by the script's own variables.
"""

from __future__ import annotations

import http.client
import json
import os
import re
import socket
import subprocess
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack, suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from cluster.runtime.ports import free_ports
from cluster.runtime.private.haproxy import (
    BINARY_VARIABLE,
    OUTER_VARIABLE,
    PORT_VARIABLES,
    SCRIPT,
    haproxy_environment,
    private_haproxy,
)
from serve.protocol.limits import Limits

DEADLINE_S = 30.0
MAXCONN = 16  # the limit is seven eighths: 14
PREFIX = "/app"


class Echo(BaseHTTPRequestHandler):
    """Answers the length of the body."""

    protocol_version = "HTTP/1.1"

    def do_GET(self) -> None:
        body = self.rfile.read(int(self.headers.get("content-length", 0)))
        answer = json.dumps({"bytes": len(body)}).encode()
        self.send_response(200)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(answer)))
        self.end_headers()
        self.wfile.write(answer)

    do_POST = do_GET

    def log_message(self, *_: object) -> None:
        """Nothing on stderr."""


class Dying(Echo):
    """Takes requests and ends without a word, as a replica that is killed."""

    def do_POST(self) -> None:
        self.rfile.read(int(self.headers.get("content-length", 0)))
        self.close_connection = True


@pytest.fixture(scope="module")
def backends() -> Iterator[list[int]]:
    """Ports of a backend that is well and of one that dies."""
    with ExitStack() as stack:
        ports = []
        for kind in (Echo, Dying):
            server = stack.enter_context(ThreadingHTTPServer(("127.0.0.1", 0), kind))
            threading.Thread(target=server.serve_forever, daemon=True).start()
            stack.callback(server.shutdown)
            ports.append(server.server_address[1])
        yield ports


def ray_serves_configuration(folder: Path, ports: list[int], servers: list[int]) -> Path:
    from ray.serve._private.haproxy import BackendConfig, HAProxyApi, HAProxyConfig, ServerConfig
    from ray.serve.config import HTTPOptions, gRPCOptions

    public, grpc, stats, metrics = ports
    config = HAProxyConfig(
        socket_path=str(folder / "admin.sock"),
        server_state_base=str(folder),
        server_state_file=str(folder / "state"),
        maxconn=MAXCONN,
        nbthread=1,
        stats_port=stats,
        metrics_port=metrics,
        metrics_enabled=False,
        retry_on="conn-failure empty-response",
        balance_algorithm="roundrobin",
        health_check_inter="200ms",
        has_received_routes=True,
        has_received_servers=True,
        http_options=HTTPOptions(host="127.0.0.1", port=public),
        grpc_options=gRPCOptions(
            port=grpc, grpc_servicer_functions=["serve.proto.health_pb2_grpc.add_HealthServicer_to_server"]
        ),
    )
    made = [ServerConfig(f"replica{index}", "127.0.0.1", port) for index, port in enumerate(servers)]
    backend = BackendConfig(name="app", path_prefix=PREFIX, app_name="app", servers=made)
    path = folder / "haproxy.cfg"
    HAProxyApi(config, {"app": backend}, str(path))._generate_config_file_internal()
    return path


@pytest.fixture(scope="module")
def proxy(tmp_path_factory: pytest.TempPathFactory, backends: list[int]) -> Iterator[int]:
    """The public port of HAProxy as a private Ray starts it; a head has one second, a body two."""
    folder = tmp_path_factory.mktemp("ha")
    ports = free_ports(4)
    config = ray_serves_configuration(folder, ports, backends)
    environment = {**os.environ, **haproxy_environment(folder)}
    environment |= {"MANTA_HEAD_TIMEOUT_S": "1", "MANTA_BODY_TIMEOUT_S": "2"}
    process = subprocess.Popen(
        [str(folder / SCRIPT.name), "-db", "-f", str(config)], env=environment, stderr=subprocess.PIPE, text=True
    )
    try:
        deadline_s = time.monotonic() + DEADLINE_S
        while ask(ports[0], b"GET /app HTTP/1.1\r\nHost: x\r\n\r\n")[0] != 200:
            assert process.poll() is None, process.stderr and process.stderr.read()
            assert time.monotonic() < deadline_s
        yield ports[0]
    finally:
        process.kill()
        _, errors = process.communicate(timeout=DEADLINE_S)
    assert "ALERT" not in errors, errors


def test_a_ray_inside_another_one_starts_haproxy_itself(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its package names the outer Ray's script, which would name itself."""
    monkeypatch.delenv("RAY_SERVE_HAPROXY_BINARY_PATH", raising=False)
    monkeypatch.delenv(BINARY_VARIABLE, raising=False)
    (tmp_path / "inner").mkdir()
    outer = haproxy_environment(tmp_path)
    for name, value in outer.items():
        monkeypatch.setenv(name, value)
    inner = haproxy_environment(tmp_path / "inner")
    assert inner[BINARY_VARIABLE] == outer[BINARY_VARIABLE] != str(tmp_path / SCRIPT.name)
    assert inner["RAY_SERVE_HAPROXY_BINARY_PATH"] == str(tmp_path / "inner" / SCRIPT.name)


def test_a_ray_inside_another_one_has_side_ports_of_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(PORT_VARIABLES[0], "9101")  # the user's
    monkeypatch.delenv(OUTER_VARIABLE, raising=False)
    for name in PORT_VARIABLES[1:]:
        monkeypatch.delenv(name, raising=False)
    with private_haproxy():
        assert os.environ[PORT_VARIABLES[0]] == "9101"
        outer = [os.environ[name] for name in PORT_VARIABLES]
        with private_haproxy():
            assert not {os.environ[name] for name in PORT_VARIABLES} & set(outer)
        assert [os.environ[name] for name in PORT_VARIABLES] == outer
    assert not any(name in os.environ for name in (*PORT_VARIABLES[1:], OUTER_VARIABLE))


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


def drip(connection: socket.socket, data: bytes) -> float:
    """Send a little every 50 ms until something comes back; returns the seconds."""
    started = time.monotonic()
    connection.settimeout(0.05)
    while time.monotonic() - started < DEADLINE_S:
        try:
            if connection.recv(1, socket.MSG_PEEK) is not None:
                break
        except TimeoutError:
            with suppress(ConnectionError):
                connection.sendall(data)
        except ConnectionError:
            break
    connection.settimeout(DEADLINE_S)
    return time.monotonic() - started


@pytest.mark.parametrize(
    ("data", "more", "least_s", "most_s"),
    [
        (b"", b"", 0.8, 1.9),
        (b"POST /app", b"", 0.8, 1.9),
        (b"POST /app/x HTTP/1.1\r\nHost: x\r\nX-A: ", b"a", 0.8, 1.9),
        (post(1000, sent=10), b"x", 1.5, 6.0),
    ],
    ids=["silence", "half a line", "a header that goes on", "a body that goes on"],
)
def test_what_does_not_come_in_time_is_ended(
    proxy: int, data: bytes, more: bytes, least_s: float, most_s: float
) -> None:
    with connect(proxy, data) as connection:
        took_s = drip(connection, more)
        status, headers, body = read(connection)
    assert least_s <= took_s < most_s
    assert status == 408
    if more == b"x":  # before a head is whole HAProxy's parser has a fixed page
        assert (headers["content-type"], json.loads(body)) == (
            "application/json",
            {"error": "the request did not arrive in time"},
        )


def test_connections_past_the_limit_are_told_and_those_of_before_go_on(proxy: int) -> None:
    with ExitStack() as stack:
        early = stack.enter_context(connect(proxy, post(3)))
        assert read(early)[0] == 200
        refused = []
        while len(refused) < 2:  # the dying backend and health checks hold none of the frontend's connections
            connection = stack.enter_context(connect(proxy, post(3)))
            status, headers, body = read(connection)
            if status == 503:
                refused.append((headers, json.loads(body)))
            else:
                assert status == 200
        for headers, body in refused:
            assert (headers["content-type"], headers["retry-after"]) == ("application/json", "1")
            assert "as many connections as it may" in body["error"]
        early.sendall(post(5))
        assert read(early)[::2] == (200, b'{"bytes": 5}')
    deadline_s = time.monotonic() + DEADLINE_S
    while ask(proxy, post(3))[0] != 200:
        assert time.monotonic() < deadline_s


@pytest.mark.parametrize("num_bytes", [0, 3, 12_000])
def test_a_request_whose_replica_ends_is_sent_to_another_one(proxy: int, num_bytes: int) -> None:
    """Every second request goes to the backend that dies first."""
    answers = [ask(proxy, post(num_bytes)) for _ in range(6)]
    assert [(status, json.loads(body)) for status, _, body in answers] == [(200, {"bytes": num_bytes})] * 6


def test_the_scripts_defaults_are_the_limits_of_the_process_behind() -> None:
    text = SCRIPT.read_text(encoding="utf-8")
    limits = Limits()
    assert float(re.findall(r"MANTA_HEAD_TIMEOUT_S:-(\d+)", text)[0]) == limits.head_timeout_s
    assert float(re.findall(r"MANTA_BODY_TIMEOUT_S:-(\d+)", text)[0]) == limits.body_timeout_s
    most, above, below = map(int, re.findall(r"connections_most:-(\d+)} \* (\d+) / (\d+)", text)[0])
    assert most * above // below == limits.connections
