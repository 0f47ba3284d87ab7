"""Connections of `python -m serve`: a slow head is ended, a connection beyond the limit gets a 503."""

from __future__ import annotations

import asyncio
import json
import resource
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager, nullcontext
from typing import Any

import pytest
import uvicorn

from serve.doors.asgi import AsgiDoor
from serve.doors.http import http_protocol
from serve.protocol.limits import Limits
from serve.server import listen, open_rpc, with_descriptors
from tests.unit.serve_tests.conftest import Place
from tests.unit.serve_tests.test_asgi import GOOD, INFER

HEAD = f"POST {INFER} HTTP/1.1\r\nHost: x\r\nContent-Length: {len(GOOD)}\r\n".encode()
WHOLE = HEAD + b"\r\n" + GOOD
DEADLINE_S = 20.0
InPlace = Callable[..., Any]
Stream = tuple[asyncio.StreamReader, asyncio.StreamWriter]


class Server:
    """A door behind uvicorn with our connections."""

    def __init__(self, port: int) -> None:
        self.port = port
        self._open: list[asyncio.StreamWriter] = []

    async def connect(self, data: bytes = b"") -> Stream:
        reader, writer = await asyncio.open_connection("127.0.0.1", self.port)
        self._open.append(writer)
        writer.write(data)
        await writer.drain()
        return reader, writer

    async def close(self) -> None:
        for writer in self._open:
            writer.close()


@asynccontextmanager
async def served(door: AsgiDoor, limits: Limits) -> AsyncIterator[Server]:
    listener = listen("127.0.0.1", 0)
    settings = uvicorn.Config(
        door, log_level="critical", access_log=False, lifespan="off", http=http_protocol(limits), ws="none"
    )
    server = uvicorn.Server(settings)
    server.capture_signals = nullcontext  # type: ignore[method-assign, assignment]
    task = asyncio.get_running_loop().create_task(server.serve([listener]))
    found = Server(listener.getsockname()[1])
    try:
        yield found
    finally:
        await found.close()
        server.should_exit = True
        await task


async def answer(stream: Stream) -> tuple[int, dict[str, str], dict[str, Any]]:
    """One response; (0, {}, {}) where the server ends the connection without one."""
    reader, _ = stream
    head = await asyncio.wait_for(reader.readuntil(b"\r\n\r\n"), DEADLINE_S)
    first, *lines = head.decode().strip().split("\r\n")
    headers = {name.lower(): value for name, _, value in (line.partition(": ") for line in lines)}
    body = await asyncio.wait_for(reader.readexactly(int(headers["content-length"])), DEADLINE_S)
    return int(first.split(" ")[1]), headers, json.loads(body)


async def until_closed(stream: Stream, drip: bytes = b"", every_s: float = 0.05) -> bytes:
    """All that the server sends before it ends the connection, while we send a little now and then."""
    reader, writer = stream
    end = asyncio.get_running_loop().create_task(reader.read())
    async with asyncio.timeout(DEADLINE_S):
        while not (await asyncio.wait({end}, timeout=every_s))[0]:
            if drip:
                writer.write(drip)
    try:
        return end.result()
    except ConnectionResetError:
        return b""


def at(in_place: InPlace, limits: Limits, test: Callable[[Server, Place], Awaitable[None]]) -> None:
    async def whole(place: Place) -> None:
        async with served(place.door, limits) as server:
            await test(server, place)

    in_place(whole)


@pytest.mark.parametrize(
    ("first", "drip"),
    [(b"", b""), (b"POST /v2/mod", b""), (HEAD, b"x"), (b"", b"\r\n"), (b"GET /v2 HTTP/1.1\r\nX-A: ", b"a")],
    ids=["silence", "half a line", "a header now and then", "empty lines", "a long header"],
)
def test_a_head_that_does_not_end_is_ended_and_no_byte_keeps_it_open(
    in_place: InPlace, first: bytes, drip: bytes
) -> None:
    async def test(server: Server, _: Place) -> None:
        started = asyncio.get_running_loop().time()
        found = await until_closed(await server.connect(first), drip)
        took_s = asyncio.get_running_loop().time() - started
        assert 0.3 <= took_s < 5.0
        if first:
            assert found.startswith(b"HTTP/1.1 408 ")
            assert json.loads(found.partition(b"\r\n\r\n")[2]) == {"error": "the head did not arrive in time"}
        else:
            assert found == b"", "a connection that sent nothing is closed without an answer"

    at(in_place, Limits(head_timeout_s=0.4), test)


def test_the_second_head_of_a_connection_has_the_same_deadline(in_place: InPlace) -> None:
    async def test(server: Server, _: Place) -> None:
        stream = await server.connect(WHOLE)
        assert (await answer(stream))[0] == 200
        found = await until_closed(stream, b"G")
        assert found.startswith(b"HTTP/1.1 408 ") or found.startswith(b"HTTP/1.1 400 ")

    at(in_place, Limits(head_timeout_s=0.4), test)


def test_a_body_that_was_answered_before_it_came_keeps_nothing_open(in_place: InPlace) -> None:
    async def test(server: Server, _: Place) -> None:
        head = f"POST {INFER} HTTP/1.1\r\nHost: x\r\nContent-Length: 99999999\r\n\r\n".encode()
        stream = await server.connect(head)
        assert (await answer(stream))[0] == 413
        assert await until_closed(stream, b"x") == b""

    at(in_place, Limits(head_timeout_s=0.4), test)


def test_a_slow_engine_and_a_slow_body_have_no_deadline_of_a_head(in_place: InPlace) -> None:
    async def test(server: Server, place: Place) -> None:
        place.engine.gate.clear()
        stream = await server.connect(HEAD + b"\r\n")
        for start in range(0, len(GOOD), 20):
            await asyncio.sleep(0.1)  # the client's own slowness: what is measured
            stream[1].write(GOOD[start : start + 20])
        asyncio.get_running_loop().call_later(0.5, place.engine.gate.set)
        assert (await answer(stream))[0] == 200

    at(in_place, Limits(head_timeout_s=0.2), test)


def test_one_connection_too_many_is_told_so_at_once_and_the_others_go_on(in_place: InPlace) -> None:
    async def test(server: Server, _: Place) -> None:
        held = [await server.connect() for _ in range(2)]
        working = await server.connect(WHOLE)
        assert (await answer(working))[0] == 200
        for _ in range(3):  # they take no place themselves
            status, headers, body = await answer(await server.connect(WHOLE))
            assert (status, headers["retry-after"], headers["connection"]) == (503, "1", "close")
            assert "3 connections, which is its limit" in body["error"]
        working[1].write(WHOLE)
        assert (await answer(working))[0] == 200
        held[0][1].close()
        async with asyncio.timeout(DEADLINE_S):
            while (await answer(await server.connect(WHOLE)))[0] != 200:
                await asyncio.sleep(0.01)

    at(in_place, Limits(connections=3), test)


def test_a_grpc_connection_that_says_nothing_is_ended(in_place: InPlace, capsys: pytest.CaptureFixture[str]) -> None:
    async def test(place: Place) -> None:
        server = await open_rpc(place.door, "127.0.0.1", 0)
        try:
            port = int(capsys.readouterr().err.rsplit(":", 1)[1])
            stream = await asyncio.open_connection("127.0.0.1", port)
            found = await until_closed(stream)
            stream[1].close()
            await stream[1].wait_closed()
            assert b"handshake timeout" in found
        finally:
            await server.stop(0)

    in_place(test, limits=Limits(head_timeout_s=0.4))


def test_the_limit_follows_what_the_process_may_open(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[tuple[int, int]] = []
    monkeypatch.setattr(resource, "setrlimit", lambda _, pair: asked.append(pair))
    for have, want, connections in (((1024, 1 << 20), [(3840, 1 << 20)], 3584), ((1024, 2048), [(2048, 2048)], 1792),
                                    ((1 << 20, 1 << 20), [], 3584), ((100, 100), [(100, 100)], 1)):  # fmt: skip
        asked.clear()
        monkeypatch.setattr(resource, "getrlimit", lambda _, have=have: have)
        assert (with_descriptors(Limits()).connections, asked) == (connections, want)


def test_every_ray_serve_process_that_has_the_hook_gets_our_connections() -> None:
    from uvicorn.protocols.http import auto

    from serve.deployments.middleware import middlewares
    from serve.doors.http import JsonHttpProtocol

    before = auto.AutoHTTPProtocol
    try:
        middlewares()
        settings = uvicorn.Config(lambda: None, factory=True, lifespan="off", log_config=None)  # as Ray Serve makes it
        settings.load()
        assert settings.http_protocol_class is JsonHttpProtocol
    finally:
        auto.AutoHTTPProtocol = before
