"""The access log is a sample of the requests over both doors, and holds nothing that was said."""

from __future__ import annotations

import asyncio
import hashlib
import io
import json
import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

import grpc
import pytest

from serve.access import Access
from serve.doors.rpc import Rpc, add_to_server
from serve.handlers.access_log import AccessLog, open_access_log
from serve.proto import inference_pb2, inference_pb2_grpc
from tests.unit.serve_tests.conftest import Place
from tests.unit.serve_tests.test_asgi import GOOD, INFER, client


def logged(in_place: Callable[..., Any], share: float, requests: int, body: bytes = GOOD) -> list[dict[str, Any]]:
    stream = io.StringIO()

    async def test(place: Place) -> None:
        place.dataplane.access_log = AccessLog("m", "r1", share)
        open_access_log(stream)
        async with client(place) as http:
            for _ in range(requests):
                await http.post(f"{INFER}?secret=query", content=body, headers={"authorization": "Bearer secret-token"})

    in_place(test, pages=True)
    return [json.loads(line) for line in stream.getvalue().splitlines()]


def test_the_access_log_says_what_happened_and_nothing_that_was_said(in_place: Callable[..., Any]) -> None:
    (line,) = logged(in_place, 1.0, 1, GOOD.replace(b'"inputs"', b'"id":"secret-id","inputs"', 1))
    assert (line["endpoint"], line["replica"], line["method"], line["path"]) == ("m", "r1", "POST", INFER)
    assert (line["status"], line["response_bytes"] > 0, line["duration_ms"] > 0) == (200, True, True)
    assert line["request_bytes"] > len(GOOD)
    assert "secret" not in json.dumps(line)
    assert set(line) == {
        "unix_s", "endpoint", "replica", "client", "method", "path", "status", "request_bytes", "response_bytes",
        "duration_ms", "version",
    }  # fmt: skip
    assert line["version"] == "1"


def test_a_requests_id_comes_back_and_is_in_the_log_with_version_and_forwarded_address(
    in_place: Callable[..., Any],
) -> None:
    stream = io.StringIO()
    headers = {"x-request-id": "r-17", "x-forwarded-for": "203.0.113.9, 10.0.0.2"}

    async def test(place: Place) -> None:
        place.dataplane.access_log = AccessLog("m", share=1.0)
        open_access_log(stream)
        async with client(place) as http:
            answers = [
                await http.post(INFER, content=GOOD, headers=headers),
                await http.post(INFER, content=b"{", headers=headers),
                await http.get("/v2/health/ready", headers=headers),
                await http.post("/predict", content=b'{"rows":[[1,2,3]]}', headers=headers),
                await http.get("/nowhere", headers=headers),
            ]
            assert [answer.headers.get_list("x-request-id") for answer in answers] == [["r-17"]] * 5
            assert "x-request-id" not in (await http.post(INFER, content=GOOD)).headers

    in_place(test, pages=True)
    lines = [json.loads(line) for line in stream.getvalue().splitlines()]
    assert {line.get("request_id") for line in lines[:-1]} == {"r-17"}
    assert {line.get("forwarded_for") for line in lines[:-1]} == {headers["x-forwarded-for"]}
    assert [line.get("version") for line in lines] == ["1", "1", None, "1", None, "1"]


@pytest.mark.parametrize(("share", "least", "most"), [(0.0, 0, 0), (0.5, 60, 140), (1.0, 200, 200)])
def test_the_share_is_sampled(in_place: Callable[..., Any], share: float, least: int, most: int) -> None:
    assert least <= len(logged(in_place, share, 200)) <= most


class _Unclosed(io.RawIOBase):
    """Writes through to a file that stays the test's to close."""

    def __init__(self, raw: Any) -> None:
        self._raw = raw

    def writable(self) -> bool:
        return True

    def write(self, data: Any) -> int:
        return int(self._raw.write(data))


def test_a_log_that_cannot_be_written_costs_no_request(
    in_place: Callable[..., Any], capfd: pytest.CaptureFixture[str]
) -> None:
    async def test(place: Place) -> None:
        place.dataplane.access_log = AccessLog("m", share=1.0)
        with Path("/dev/full").open("wb", buffering=0) as full:
            open_access_log(io.TextIOWrapper(_Unclosed(full), write_through=True))
            async with client(place) as http:
                for _ in range(3):
                    assert (await http.post(INFER, content=GOOD)).status_code == 200
            logging.getLogger("serve.access").handlers.clear()

    in_place(test)
    assert "Traceback" not in capfd.readouterr().err


def test_a_client_that_leaves_is_logged_as_gone(in_place: Callable[..., Any]) -> None:
    stream = io.StringIO()

    async def test(place: Place) -> None:
        place.dataplane.access_log = AccessLog("m", share=1.0)
        open_access_log(stream)

        async def receive() -> dict[str, Any]:
            return {"type": "http.disconnect"}

        async def send(message: Any) -> None:
            raise AssertionError

        scope = {"type": "http", "method": "POST", "path": INFER, "headers": [], "root_path": ""}
        await asyncio.wait_for(place.door(scope, receive, send), 5)

    in_place(test)
    assert json.loads(stream.getvalue())["status"] == 499


def rpc_lines(in_place: Callable[..., Any], talk: Callable[[Any], Any]) -> list[dict[str, Any]]:
    """What is logged while `talk` asks a real gRPC server of an endpoint that wants a token."""
    stream = io.StringIO()

    async def test(place: Place) -> None:
        place.dataplane.access = Access(infer=(hashlib.sha256(b"secret-token").digest(),))
        open_access_log(stream)
        server = grpc.aio.server()
        place.dataplane.access_log = AccessLog("m", "r1", share=1.0)
        add_to_server(Rpc(place.dataplane, place.controlplane), server)
        port = server.add_insecure_port("127.0.0.1:0")
        await server.start()
        try:
            async with grpc.aio.insecure_channel(f"127.0.0.1:{port}") as channel:
                await talk(inference_pb2_grpc.GRPCInferenceServiceStub(channel))
        finally:
            await server.stop(5)

    in_place(test)
    return [json.loads(line) for line in stream.getvalue().splitlines()]


TOKEN = (("authorization", "Bearer secret-token"),)


def question(values: int) -> Any:
    message = inference_pb2.ModelInferRequest(model_name="m", id="secret-id")
    tensor = message.inputs.add(name="x", datatype="FP32", shape=[1, values])
    tensor.contents.fp32_contents.extend([1.0] * values)
    return message


def test_grpc_calls_are_logged_with_their_code(in_place: Callable[..., Any]) -> None:
    async def talk(stub: Any) -> None:
        call = stub.ModelInfer(question(3), metadata=(*TOKEN, ("x-request-id", "r-18")))
        await call
        assert ("x-request-id", "r-18") in tuple(await call.trailing_metadata())
        for message, metadata in ((question(4), TOKEN), (question(3), ())):
            with pytest.raises(grpc.aio.AioRpcError):
                await stub.ModelInfer(message, metadata=metadata)

    lines = rpc_lines(in_place, talk)
    assert [line["status"] for line in lines] == ["OK", "INVALID_ARGUMENT", "UNAUTHENTICATED"]
    assert {(line["method"], line["path"], line["client"], line["replica"]) for line in lines} == {
        ("gRPC", "/inference.GRPCInferenceService/ModelInfer", "127.0.0.1", "r1")
    }
    assert lines[0]["request_bytes"] == question(3).ByteSize()
    assert lines[0]["response_bytes"] > 0
    assert [(line.get("request_id"), line.get("version")) for line in lines] == [
        ("r-18", "1"), (None, "1"), (None, None),
    ]  # fmt: skip
    assert "secret" not in json.dumps(lines)


def test_a_grpc_stream_is_one_line(in_place: Callable[..., Any]) -> None:
    async def talk(stub: Any) -> None:
        async def questions() -> Any:
            for _ in range(3):
                yield question(3)

        answers = [answer async for answer in stub.ModelStreamInfer(questions(), metadata=TOKEN)]
        assert len(answers) == 3

    (line,) = rpc_lines(in_place, talk)
    assert (line["status"], line["path"].rpartition("/")[2]) == ("OK", "ModelStreamInfer")
    assert line["request_bytes"] == 3 * question(3).ByteSize()
