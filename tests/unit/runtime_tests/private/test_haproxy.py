"""cluster/runtime/private/haproxy_start.py over what Ray Serve writes: the bundled HAProxy, without Ray.

The backend answers the length of what it got; the limits are shortened by the launcher's own variables.
"""

from __future__ import annotations

import json
import os
import resource
import socket
import time
from collections.abc import Iterator
from contextlib import ExitStack, suppress
from pathlib import Path

import pytest

from cluster.runtime.ports import free_ports
from cluster.runtime.private.haproxy import (
    LAUNCHER,
    OUTER_VARIABLE,
    PORT_VARIABLES,
    haproxy_environment,
    private_haproxy,
)
from cluster.runtime.private.haproxy_config import ProxyLimits
from cluster.runtime.private.haproxy_start import BINARY_VARIABLE
from serve.protocol.limits import Limits
from tests.unit.runtime_tests.private.haproxies import (
    DEADLINE_S,
    Dying,
    Echo,
    Holding,
    ask,
    backend,
    connect,
    eventually,
    haproxy,
    post,
    read,
)


@pytest.fixture(scope="module")
def proxy(tmp_path_factory: pytest.TempPathFactory) -> Iterator[int]:
    """The public port before a backend that is well and one that dies."""
    with backend(Echo) as well, backend(Dying) as dying, haproxy(tmp_path_factory.mktemp("ha"), [well, dying]) as made:
        eventually(lambda: ask(made.port, b"GET /app HTTP/1.1\r\nHost: x\r\n\r\n")[0] == 200)
        yield made.port


def test_a_ray_inside_another_one_starts_haproxy_itself(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its package names the outer Ray's script, which would name itself."""
    monkeypatch.delenv("RAY_SERVE_HAPROXY_BINARY_PATH", raising=False)
    monkeypatch.delenv(BINARY_VARIABLE, raising=False)
    (tmp_path / "inner").mkdir()
    outer = haproxy_environment(tmp_path)
    for name, value in outer.items():
        monkeypatch.setenv(name, value)
    inner = haproxy_environment(tmp_path / "inner")
    assert inner[BINARY_VARIABLE] == outer[BINARY_VARIABLE] != str(tmp_path / LAUNCHER)
    assert inner["RAY_SERVE_HAPROXY_BINARY_PATH"] == str(tmp_path / "inner" / LAUNCHER)


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


def test_an_answer_that_comes_late_is_waited_for_and_one_that_nobody_reads_is_ended(proxy: int) -> None:
    Echo.cut.clear()
    with socket.socket() as reader:
        reader.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        reader.connect(("127.0.0.1", proxy))
        while not Echo.cut.is_set():  # every second request goes to the backend that dies, and is sent to the other one
            reader.sendall(b"GET /app/large HTTP/1.1\r\nHost: x\r\n\r\n")
            assert Echo.cut.wait(DEADLINE_S)
    assert ask(proxy, b"GET /app/late HTTP/1.1\r\nHost: x\r\n\r\n")[0] == 200


@pytest.mark.parametrize("replicas", ["none", "one that is down"])
def test_a_request_that_no_replica_takes_is_503_in_time(tmp_path: Path, replicas: str) -> None:
    gone = free_ports(1) if replicas != "none" else []
    with backend(Holding) as fallback, haproxy(tmp_path, gone, fallback) as made:
        if gone:  # until HAProxy has seen it
            eventually(lambda: ask(made.port, b"GET /app HTTP/1.1\r\nHost: x\r\n\r\n")[0] == 200)
        started = time.monotonic()
        status, headers, body = ask(made.port, post(3))
        assert 0.9 <= time.monotonic() - started < 3.0
    assert (status, headers["retry-after"], list(json.loads(body))) == (503, "1", ["error"])


def test_a_replica_may_take_longer_than_none_is_waited_for(tmp_path: Path) -> None:
    with backend(Echo) as well, backend(Holding) as fallback, haproxy(tmp_path, [well], fallback) as made:
        assert ask(made.port, b"GET /app/late HTTP/1.1\r\nHost: x\r\n\r\n")[0] == 200


@pytest.mark.parametrize(("servers", "status"), [(None, 503), ([], 404)], ids=["before the routes", "with routes"])
def test_an_unknown_path_is_unknown_only_when_the_routes_are_there(
    tmp_path: Path, servers: list[int] | None, status: int
) -> None:
    with haproxy(tmp_path, servers) as made:
        found, headers, body = ask(made.port, b"GET /nobody HTTP/1.1\r\nHost: x\r\n\r\n")
    assert (found, "retry-after" in headers, list(json.loads(body))) == (status, status == 503, ["error"])


@pytest.mark.slow
def test_ten_thousand_slow_connections_are_not_noticed(tmp_path: Path) -> None:
    """Two fifths send a head without end, two fifths a body, one fifth reads nothing."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if hard < 16_384:
        pytest.skip("needs 16,384 open files")
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    kinds = [b"POST /app", post(1000, sent=1)] * 2 + [b"GET /app HTTP/1.1\r\nHost: x\r\n\r\n"]
    try:
        with backend(Echo) as well, haproxy(tmp_path, [well], maxconn=16_384, limits={}) as made, ExitStack() as stack:
            eventually(lambda: ask(made.port, post(3))[0] == 200)
            took_s, slow = [], []
            while len(slow) < 10_000:
                slow.append(stack.enter_context(connect(made.port, kinds[len(slow) % len(kinds)])))
                if len(slow) % 50 == 0:
                    started = time.monotonic()
                    assert ask(made.port, post(3))[0] == 200, len(slow)
                    took_s.append(time.monotonic() - started)
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    assert sorted(took_s)[int(0.99 * len(took_s))] < 0.2


def test_the_defaults_are_the_limits_of_the_process_behind() -> None:
    limits, proxy = Limits(), ProxyLimits()
    assert (proxy.head_timeout_s, proxy.body_timeout_s) == (limits.head_timeout_s, limits.body_timeout_s)
