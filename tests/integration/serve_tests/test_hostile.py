"""Hostile and careless clients over real sockets: each is refused or forgotten, and nobody else notices.

The model is simulated (serve/testing.py): 2 ms a call, marked rows raise, a batch of more than 16 rows is out
of memory. Not covered: gRPC.
"""

from __future__ import annotations

import json
import os
import shutil
import socket
import struct
import subprocess
import sys
import zlib
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path

import httpx
import psutil
import pytest

from cluster.runtime.ports import claim_port
from tests.bundles import make_simulated_bundle
from tests.contract.protocol_tests.conftest import ready_line
from tests.integration.serve_tests.witness import witnessed

INFER = "/v2/models/played/infer"
ADMIN = "admin-token-0123456789"
MARK = 666.0
MIB = 1 << 20


class Server:
    """`python -m serve` of a played model."""

    def __init__(self, address: str, pid: int) -> None:
        self.address, self.process = address, psutil.Process(pid)
        host, _, port = address.partition(":")
        self.place = (host, int(port))
        self.http = httpx.Client(base_url=f"http://{address}", timeout=60, trust_env=False)

    def post(self, content: bytes, path: str = INFER, **headers: str) -> httpx.Response:
        given = {name.replace("_", "-"): value for name, value in headers.items()}
        return self.http.post(path, content=content, headers=given)

    def raw(self, data: bytes, *, read: bool = True) -> bytes:
        """Bytes onto a socket of our own; what comes back until the server closes or answers."""
        with socket.create_connection(self.place, timeout=30) as connection:
            with suppress(BrokenPipeError, ConnectionResetError):
                connection.sendall(data)
            if not read:
                connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
                return b""
            with suppress(ConnectionResetError):
                return connection.recv(65536)
        return b""


def body(*rows: float, shape: list[int] | None = None, name: str = "x") -> bytes:
    data = [[value, 0.0, 0.0, 0.0] for value in rows]
    tensor = {"name": name, "shape": shape or [len(rows), 4], "datatype": "FP32", "data": data}
    return json.dumps({"inputs": [tensor]}).encode()


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    folder = tmp_path_factory.mktemp("hostile")
    bundle = make_simulated_bundle(folder / "bundle", call_s=0.002, memory_rows=16, raise_at=MARK)
    (folder / "admin").write_text(ADMIN)
    command = [sys.executable, "-m", "serve", str(bundle), "--port", "0", "--max-rows", "8"]
    process = subprocess.Popen(
        [*command, "--admin-token-file", str(folder / "admin")], stderr=subprocess.PIPE, text=True
    )
    try:
        made = Server(ready_line(process, "http://"), process.pid)
        with made.http:
            yield made
    finally:
        process.terminate()
        process.communicate(timeout=30)


@pytest.fixture(autouse=True)
def _others_are_unaffected(server: Server) -> Iterator[None]:
    with witnessed(f"http://{server.address}", "played") as witnesses:
        yield
    assert witnesses.longest_s < 5.0


def zip_bomb(plain_mib: int) -> bytes:
    squeeze = zlib.compressobj(9, zlib.DEFLATED, 31)
    block = b" " * MIB
    return b"".join([*(squeeze.compress(block) for _ in range(plain_mib)), squeeze.flush()])


@pytest.mark.parametrize(
    ("make", "headers", "status", "words"),
    [
        (lambda: b"[" * 1_000_000, {}, 400, "JSON"),
        (lambda: b'{"inputs":' + b'{"a":' * 500 + b"1" + b"}" * 501, {}, 400, ""),
        (lambda: zip_bomb(100), {"content_encoding": "gzip"}, 413, "limit"),
        (lambda: body(1.0, shape=[1 << 60, 4]), {}, 413, "elements"),
        (lambda: body(1.0, shape=[1 << 62, 1 << 62]), {}, 413, ""),
        (lambda: body(1.0, shape=[-4, -1]), {}, 400, ""),
        (lambda: body(1.0, name="x\0y"), {}, 400, ""),
        (lambda: body(1.0), {"inference_header_content_length": "999"}, 400, ""),
        (lambda: b"\xff" * MIB, {"inference_header_content_length": "0"}, 400, ""),
        (lambda: b"x" * (65 * MIB), {}, 413, "bytes"),
    ],
    ids=["depth bomb", "deep objects", "zip bomb of 100 MiB", "2^60 rows", "2^124 elements", "negative shape",
         "NUL in a name", "header length past the body", "raw bytes of another size", "body past the limit"],
)  # fmt: skip
def test_a_hostile_body_is_a_json_error_and_takes_no_memory(
    server: Server, make: Callable[[], bytes], headers: dict[str, str], status: int, words: str
) -> None:
    before = server.process.memory_info().rss
    answer = server.post(make(), **headers)
    assert (answer.status_code, list(answer.json())) == (status, ["error"]), answer.text[:200]
    assert words in answer.json()["error"]
    assert server.process.memory_info().rss - before < 150 * MIB


def test_a_nul_in_a_models_name_is_not_found(server: Server) -> None:
    assert server.post(body(1.0), "/v2/models/pla%00yed/infer").status_code == 404


def test_a_marked_row_fails_alone_in_the_batch_that_it_shares(server: Server) -> None:
    values = [MARK if index % 5 == 0 else float(index) for index in range(40)]
    with ThreadPoolExecutor(20) as pool:
        answers = list(pool.map(lambda value: server.post(body(value)), values))
    assert [answer.status_code for answer in answers] == [500 if value == MARK else 200 for value in values]
    right = [answer.json()["outputs"][0]["data"][0] for answer in answers if answer.status_code == 200]
    assert right == [value for value in values if value != MARK]


def test_more_rows_than_the_memory_holds_are_cut_into_calls_that_it_holds(server: Server) -> None:
    answer = server.post(body(*map(float, range(20))))
    assert answer.status_code == 200, answer.text
    assert answer.json()["outputs"][0]["data"][::10] == [0.0, 10.0]


def test_a_flood_of_one_byte_chunks_is_ended(server: Server) -> None:
    head = f"POST {INFER} HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n".encode()
    before = server.process.memory_info().rss
    answer = server.raw(head + b"1\r\n \r\n" * 300_000 + b"0\r\n\r\n")
    assert answer.startswith(b"HTTP/1.1 4")
    assert server.process.memory_info().rss - before < 100 * MIB


def test_a_length_that_lies_is_refused_or_waited_for_without_harm(server: Server) -> None:
    lies = f"POST {INFER} HTTP/1.1\r\nHost: x\r\nContent-Length: 99999999999\r\n\r\n".encode()
    assert b" 413 " in server.raw(lies + b"{")
    server.raw(f"POST {INFER} HTTP/1.1\r\nHost: x\r\nContent-Length: 1000\r\n\r\n".encode() + b"{", read=False)


def test_clients_that_vanish_leave_nothing_behind(server: Server) -> None:
    content = body(1.0)
    request = f"POST {INFER} HTTP/1.1\r\nHost: x\r\nContent-Length: {len(content)}\r\n\r\n".encode() + content
    with ThreadPoolExecutor(20) as pool:
        list(pool.map(lambda cut: server.raw(request[:cut], read=False), [len(request)] * 100 + [40] * 50))
    assert_idle(server)


def test_everything_is_as_before_after_four_of_five_clients_timed_out(server: Server) -> None:
    def impatient(index: int) -> int:
        patience_s = 30.0 if index % 5 == 0 else 0.001
        try:
            return server.http.post(INFER, content=body(float(index)), timeout=patience_s).status_code
        except httpx.TransportError:
            return 0

    with ThreadPoolExecutor(40) as pool:
        found = list(pool.map(impatient, range(200)))
    assert found.count(0) > 100, "most were too impatient"
    assert {found[index] for index in range(0, 200, 5)} == {200}, "the patient ones were all answered"
    assert_idle(server)


def assert_idle(server: Server) -> None:
    """Nothing waits but what the two witnesses have just sent."""
    text = server.http.get("/metrics").text
    (waiting,) = [line for line in text.splitlines() if line.startswith("manta_serve_queued_rows{")]
    assert float(waiting.rsplit(" ", 1)[1]) <= 2


def test_connections_that_say_nothing_take_no_ones_place(server: Server) -> None:
    silent = [socket.create_connection(server.place, timeout=30) for _ in range(200)]
    try:
        for connection in silent[:100]:
            connection.sendall(b"POST /v2/mod")
        assert server.post(body(3.0)).status_code == 200
    finally:
        for connection in silent:
            connection.close()


def test_a_storm_of_reloads_changes_nothing(server: Server) -> None:
    def reload(_: int) -> int:
        return server.post(b"", "/v2/repository/models/played/load", authorization=f"Bearer {ADMIN}").status_code

    with ThreadPoolExecutor(10) as pool:
        assert set(pool.map(reload, range(50))) == {200}


def test_a_port_in_use_is_told_and_its_holder_serves_on(server: Server, tmp_path: Path) -> None:
    bundle = make_simulated_bundle(tmp_path / "bundle")
    command = [sys.executable, "-m", "serve", str(bundle), "--port", str(server.place[1])]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert (done.returncode, "Traceback" in done.stderr) == (3, False)
    assert f"Cannot listen on {server.address}" in done.stderr


def can_mount() -> bool:
    return (
        bool(shutil.which("unshare")) and not subprocess.run(["unshare", "-m", "true"], capture_output=True).returncode
    )


@pytest.mark.skipif(not can_mount(), reason="needs a mount namespace: root on Linux")
def test_a_disk_that_fills_up_under_load_is_not_noticed_by_clients(tmp_path: Path) -> None:
    """Log and temporary files lie on a file system of 64 KiB, which the access log fills."""
    bundle = make_simulated_bundle(tmp_path / "bundle")
    full = tmp_path / "full"
    full.mkdir()
    port = claim_port("127.0.0.1", 0)
    script = f'mount -t tmpfs -o size=64k tmpfs {full} && exec "$@" 2>{full}/log'
    command = [sys.executable, "-m", "serve", str(bundle), "--port", str(port), "--access-log", "1"]
    process = subprocess.Popen(
        ["unshare", "-m", "bash", "-c", script, "bash", *command], env={**os.environ, "TMPDIR": str(full)}
    )
    try:
        wait_ready(port, process)
        with witnessed(f"http://127.0.0.1:{port}", "played") as witnesses:
            witnesses.more(600)  # of about 230 bytes of log each: twice the disk
        log = Path(f"/proc/{process.pid}/root{full}/log")
        assert log.stat().st_size <= 64 << 10
        assert process.poll() is None
    finally:
        process.terminate()
        process.wait(30)


def wait_ready(port: int, process: subprocess.Popen[bytes]) -> None:
    while True:
        assert process.poll() is None
        with suppress(httpx.TransportError):
            if httpx.get(f"http://127.0.0.1:{port}/v2/health/ready", timeout=5, trust_env=False).status_code == 200:
                return
