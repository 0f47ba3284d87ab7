"""Odd HTTP over real sockets, to `python -m serve` and to Ray Serve's proxy: every error is the protocol's JSON.

Invariant: what comes back is a success, `{"error": …}` or the end of the connection; never a traceback. The one
exception is what HAProxy's parser refuses as no HTTP at all: it has a fixed page for that (`NO_HTTP`).
Not covered: hostile bodies (test_hostile.py), gRPC (tests/unit/serve_tests/test_rpc.py).
"""

from __future__ import annotations

import http.client
import json
import socket
import time
from collections.abc import Iterator
from contextlib import ExitStack, suppress
from pathlib import Path
from urllib.parse import urlsplit

import psutil
import pytest

from serve.client import EndpointClient
from tests.contract.protocol_tests.conftest import server_process

ROW = {"inputs": [{"name": "x", "shape": [1, 1, 8, 8], "datatype": "FP32", "data": [0.0] * 64}]}
BODY = json.dumps(ROW).encode()
INFER = "/v2/models/digits/infer"


class Wire:
    """A server, and bytes to and from it."""

    def __init__(self, url: str) -> None:
        parts = urlsplit(url)
        self.host, self.port, self.prefix = str(parts.hostname), int(parts.port or 80), parts.path

    def talk(self, data: bytes, *methods: str) -> list[tuple[int, dict[str, str], bytes]]:
        """Send bytes, and read one answer for each method; fewer where the server ends the connection."""
        found = []
        with socket.create_connection((self.host, self.port), timeout=20) as connection:
            with suppress(BrokenPipeError, ConnectionResetError):
                connection.sendall(data)
            with connection.makefile("rb") as stream, suppress(ConnectionResetError, http.client.BadStatusLine):
                for method in methods or ("POST",):
                    answer = http.client.HTTPResponse(_Reader(stream), method=method)  # type: ignore[arg-type]
                    answer.begin()
                    found.append((answer.status, {k.lower(): v for k, v in answer.getheaders()}, answer.read()))
        return found

    def request(self, line: str, *headers: str, body: bytes = b"", version: str = "HTTP/1.1") -> bytes:
        method, _, path = line.partition(" ")
        lines = [f"{method} {self.prefix}{path} {version}", "Host: x", *headers]
        return "\r\n".join([*lines, "", ""]).encode("latin-1") + body


class _Reader:
    """What http.client wants of a socket: one stream for all answers."""

    def __init__(self, stream: object) -> None:
        self._stream = _Open(stream)

    def makefile(self, _mode: str) -> object:
        return self._stream


class _Open:
    def __init__(self, stream: object) -> None:
        self._stream = stream

    def __getattr__(self, name: str) -> object:
        return getattr(self._stream, name)

    def close(self) -> None:
        """The next answer is read from the same stream."""


@pytest.fixture(scope="module")
def plain(digits_bundle: Path) -> Iterator[Wire]:
    with server_process(digits_bundle) as address:
        yield Wire(f"http://{address}")


@pytest.fixture(params=["one process", "Ray Serve"])
def wire(request: pytest.FixtureRequest) -> Wire:
    if request.param == "one process":
        found: Wire = request.getfixturevalue("plain")
        return found
    client: EndpointClient = request.getfixturevalue("endpoint")
    return Wire(client.url)


LENGTH = f"Content-Length: {len(BODY)}"
CASES: dict[str, tuple[str, tuple[str, ...], bytes, set[int]]] = {
    "PUT": (f"PUT {INFER}", (LENGTH,), BODY, {405}),
    "OPTIONS": ("OPTIONS /v2", (), b"", {405}),
    "OPTIONS of the human side": ("OPTIONS /predict", (), b"", {405}),
    "TRACE": ("TRACE /v2/health/live", (), b"", {405}),
    "an unknown verb": ("BREW /v2", (), b"", {400, 405}),
    "two slashes": ("GET //v2", (), b"", {404}),
    "only slashes": ("GET ////", (), b"", {404}),
    "a slash too many": ("GET /docs/", (), b"", {404}),
    "NUL": ("GET /v2/models/%00", (), b"", {404}),
    "dots": ("GET /v2/../../etc/passwd", (), b"", {404}),
    "bytes that are no UTF-8": ("GET /v2/models/%ff%fe", (), b"", {404}),
    "a long path": ("GET /v2/" + "a" * 9000, (), b"", {404}),
    "a head past every limit": ("GET /v2", ("X-Long: " + "a" * 200_000,), b"", {400, 431}),
    "two lengths": (f"POST {INFER}", (LENGTH, "Content-Length: 5"), BODY, {400}),
    "a length and chunks": (f"POST {INFER}", (LENGTH, "Transfer-Encoding: chunked"), BODY, {400}),
    "a length that is no number": (f"POST {INFER}", ("Content-Length: ten",), BODY, {400}),
    "a header without a colon": ("GET /v2", ("nonsense",), b"", {400}),
    "a websocket": ("GET /v2x", ("Connection: Upgrade", "Upgrade: websocket", "Sec-WebSocket-Version: 13",
                                 "Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ=="), b"", {400, 403, 404}),
    "raw rows that are no JSON": ("POST /predict", ("Content-Length: 1",), b"{", {400}),
    "raw rows with NaN": ("POST /predict", ("Content-Length: 16",), b'{"rows": [[NaN]]', {400}),
    "raw rows past the limit": ("POST /predict", ("Content-Length: 99999999",), b" " * 50_000, {413}),
    "a deep list of raw rows": ("POST /predict", ("Content-Length: 100000",), b"[" * 100_000, {400}),
}  # fmt: skip


NO_HTTP = {
    "a head past every limit", "two lengths", "a length and chunks", "a length that is no number",
    "a header without a colon",
}  # fmt: skip


@pytest.mark.parametrize("name", list(CASES))
def test_an_odd_request_is_a_json_error(wire: Wire, name: str) -> None:
    line, headers, body, statuses = CASES[name]
    answers = wire.talk(wire.request(line, *headers, body=body))
    if not answers:
        assert name == "a head past every limit", "only there may the end of the connection come first"
        return
    status, found, text = answers[0]
    assert status in statuses, text[:200]
    if name in NO_HTTP and wire.prefix:
        assert b"Bad request" in text
        return
    assert found["content-type"].startswith("application/json"), text[:200]
    assert list(json.loads(text)) == ["error"]
    assert b"Traceback" not in text
    if status == 405:
        assert found["allow"]


def test_a_head_is_answered_like_a_get_without_a_body(wire: Wire) -> None:
    ((status, found, text),) = wire.talk(wire.request("HEAD /v2/health/ready"), "HEAD")
    assert (status, text) == (200, b"")
    assert int(found["content-length"]) > 0


@pytest.mark.parametrize(
    ("headers", "body", "version"),
    [
        ((LENGTH,), BODY, "HTTP/1.0"),
        ((LENGTH, "Expect: 100-continue"), BODY, "HTTP/1.1"),
        (("Transfer-Encoding: chunked",), b"%x\r\n%b\r\n0\r\n\r\n" % (len(BODY), BODY), "HTTP/1.1"),
    ],
    ids=["HTTP/1.0", "Expect", "chunks"],
)
def test_old_and_careful_clients_are_answered(wire: Wire, headers: tuple[str, ...], body: bytes, version: str) -> None:
    answers = wire.talk(wire.request(f"POST {INFER}", *headers, body=body, version=version))
    assert [status for status, _, _ in answers] == [200]


def test_requests_in_one_go_are_answered_in_their_order(wire: Wire) -> None:
    first = wire.request(f"POST {INFER}", LENGTH, body=BODY)
    answers = wire.talk(first + wire.request("GET /v2/nothing") + first, "POST", "GET", "POST")
    assert [status for status, _, _ in answers] == [200, 404, 200]


def test_ray_serves_own_refusals_are_json(endpoint: EndpointClient) -> None:
    """Its limit on a request's time, which a header sets, is answered before the endpoint is."""
    wire = Wire(endpoint.url)
    ((status, found, text),) = wire.talk(wire.request("GET /metrics", "X-Request-Timeout-Seconds: 0.000001"))
    assert (status, found["content-type"], list(json.loads(text))) == (408, "application/json", ["error"])


@pytest.mark.slow  # the deadline as it is, ten seconds
@pytest.mark.parametrize("way", ["one process", "the proxy", "a replica's own port"])
def test_a_head_that_never_ends_is_ended_and_others_are_answered(
    way: str, request: pytest.FixtureRequest, endpoint: EndpointClient
) -> None:
    wire = request.getfixturevalue("plain") if way == "one process" else Wire(endpoint.url)
    place = (wire.host, replica_port() if way == "a replica's own port" else wire.port)
    with ExitStack() as stack:
        slow = [stack.enter_context(socket.create_connection(place, timeout=0.2)) for _ in range(50)]
        started, left, answers = time.monotonic(), list(slow), []
        for connection in slow:
            connection.sendall(b"POST /v2/models/digits/infer HTTP/1.1\r\nHost: x\r\nX-Slow: ")
        while left and time.monotonic() - started < 40:
            for connection in list(left):
                try:
                    connection.settimeout(0.001)
                    answers.append(connection.recv(4096))
                    left.remove(connection)
                except TimeoutError:
                    with suppress(ConnectionError):
                        connection.sendall(b"a")
                except ConnectionError:  # it sent while the answer was on its way
                    left.remove(connection)
            assert [status for status, _, _ in wire.talk(wire.request(f"POST {INFER}", LENGTH, body=BODY))] == [200]
        took_s = time.monotonic() - started
    assert left == []
    assert 8 < took_s < 30
    assert {answer[9:12] for answer in answers if answer} == {b"408"}
    if way != "the proxy":  # HAProxy's parser has a fixed page
        assert all(b"the head did not arrive in time" in answer for answer in answers if answer)


def replica_port() -> int:
    """Where the replica's own HTTP server listens."""
    for process in psutil.process_iter(["cmdline"]):
        if any("EndpointReplica" in word or "ServeReplica:digits" in word for word in process.info["cmdline"] or ()):
            for connection in process.net_connections("tcp"):
                if connection.status == psutil.CONN_LISTEN and 30000 <= connection.laddr.port <= 31000:
                    return int(connection.laddr.port)
    raise AssertionError("no replica listens")
