"""The HTTP door: hostile bodies and odd requests get a JSON error, and the next client is served as if nothing was."""

from __future__ import annotations

import asyncio
import gzip
import json
import zlib
from collections.abc import Callable
from typing import Any

import httpx
import numpy as np
import pytest

from cluster.spec.serve import BatchingSpec
from serve.limits import Limits
from tests.unit.serve_tests.conftest import Place

INFER = "/v2/models/m/infer"
GOOD = json.dumps({"inputs": [{"name": "x", "shape": [1, 3], "datatype": "FP32", "data": [1, 2, 3]}]}).encode()
InPlace = Callable[..., Any]


def client(place: Place) -> httpx.AsyncClient:
    return httpx.AsyncClient(transport=httpx.ASGITransport(place.door), base_url="http://x")


def ask(in_place: InPlace, method: str, path: str, body: bytes = b"", **options: Any) -> httpx.Response:
    """One request, and then a good one that must be answered."""
    headers = options.pop("headers", {})

    async def test(place: Place) -> httpx.Response:
        async with client(place) as http:
            response = await http.request(method, path, content=body, headers=headers)
            after = await http.post(INFER, content=GOOD)
            assert after.json()["outputs"][0]["data"] == [6.0, 6.0]
            return response

    found: httpx.Response = in_place(test, **options)
    return found


@pytest.mark.parametrize(
    ("method", "path", "status"),
    [
        ("GET", INFER, 405),
        ("DELETE", "/v2", 405),
        ("POST", "/v2/health/live", 405),
        ("PUT", "/v2/repository/index", 405),
        ("GET", "/v2/nothing", 404),
        ("GET", "/v2/models/%00", 404),
        ("GET", "/v2/models//ready", 404),
        ("POST", "/v2/models/other/infer", 404),
        ("POST", "/v2/models/m/versions/7/infer", 404),
        ("POST", "/v2/models/m/versions/latest/infer", 400),
        ("GET", "/v2/systemsharedmemory/status", 501),
        ("GET", "/v2/models/m/trace/setting", 501),
        ("GET", "/elsewhere", 404),
        ("GET", "/v2x", 404),
    ],
)
@pytest.mark.parametrize("human", [True, False])
def test_every_wrong_path_and_verb_is_a_json_error(
    in_place: InPlace, method: str, path: str, status: int, human: bool
) -> None:
    response = ask(in_place, method, path, human=human)
    assert response.status_code == status
    assert list(response.json()) == ["error"]


SMALL = Limits(body_bytes=1000, decompressed_bytes=1000)


@pytest.mark.parametrize(
    ("body", "headers", "status", "words"),
    [
        (b"x" * 1001, {}, 413, "1001 bytes"),
        (GOOD, {"content-length": "99999999999999999999"}, 413, "bytes"),
        (gzip.compress(b" " * 500_000), {"content-encoding": "gzip"}, 413, "grows past the limit"),
        (zlib.compress(b" " * 500_000), {"content-encoding": "deflate"}, 413, "grows past the limit"),
        (gzip.compress(GOOD)[:-9], {"content-encoding": "gzip"}, 400, "ends too early"),
        (gzip.compress(GOOD) + b"tail", {"content-encoding": "gzip"}, 400, "follow"),
        (GOOD, {"content-encoding": "gzip"}, 400, "not gzip"),
        (GOOD, {"content-encoding": "br"}, 415, "gzip or deflate"),
        (b"", {}, 400, "not JSON"),
        (GOOD, {"inference-header-content-length": "-7"}, 400, "0..2147483647"),
        (b"[" * 900, {}, 400, "not JSON"),
    ],
    ids=["body", "length that lies", "zip bomb", "deflate bomb", "torn gzip", "tail after gzip", "no gzip",
         "unknown encoding", "empty", "negative length", "depth bomb"],
)  # fmt: skip
def test_a_hostile_body_is_refused_and_harms_nobody(
    in_place: InPlace, body: bytes, headers: dict[str, str], status: int, words: str
) -> None:
    response = ask(in_place, "POST", INFER, body, headers=headers, limits=SMALL)
    assert (response.status_code, words in response.json()["error"]) == (status, True), response.text


@pytest.mark.parametrize("encoding", ["gzip", "deflate"])
def test_compression_both_ways(in_place: InPlace, encoding: str) -> None:
    rows = 200
    body = json.dumps(
        {"inputs": [{"name": "x", "shape": [rows, 3], "datatype": "FP32", "data": [1.0] * (3 * rows)}]}
    ).encode()
    packed = gzip.compress(body) if encoding == "gzip" else zlib.compress(body)
    response = ask(in_place, "POST", INFER, packed, headers={"content-encoding": encoding, "accept-encoding": encoding})
    assert response.headers["content-encoding"] == encoding
    assert response.json()["outputs"][0]["data"] == [3.0] * (2 * rows)


def test_binary_body_and_answer(in_place: InPlace) -> None:
    head = json.dumps(
        {
            "inputs": [{"name": "x", "shape": [2, 3], "datatype": "FP32", "parameters": {"binary_data_size": 24}}],
            "parameters": {"binary_data_output": True},
        }
    ).encode()
    body = head + np.arange(6, dtype=np.float32).tobytes()
    response = ask(in_place, "POST", INFER, body, headers={"inference-header-content-length": str(len(head))})
    length = int(response.headers["inference-header-content-length"])
    assert response.headers["content-type"] == "application/octet-stream"
    assert np.frombuffer(response.content[length:], np.float32).tolist() == [3.0, 3.0, 12.0, 12.0]


def test_raw_binary_body(in_place: InPlace) -> None:
    body = np.arange(3, dtype=np.float32).tobytes()
    response = ask(in_place, "POST", INFER, body, headers={"inference-header-content-length": "0"})
    length = int(response.headers["inference-header-content-length"])
    assert np.frombuffer(response.content[length:], np.float32).tolist() == [3.0, 3.0]


async def talk(place: Place, messages: list[dict[str, Any]], path: str = INFER, **scope: Any) -> list[dict[str, Any]]:
    """Speak ASGI by hand; after the messages the client says nothing more."""
    sent: list[dict[str, Any]] = []
    queue = list(messages)

    async def receive() -> dict[str, Any]:
        if queue:
            return queue.pop(0)
        await asyncio.Event().wait()
        raise AssertionError

    async def send(message: Any) -> None:
        sent.append(message)

    base = {"type": "http", "method": "POST", "path": path, "headers": [], "root_path": ""}
    await place.door({**base, **scope}, receive, send)
    return sent


def status(sent: list[dict[str, Any]]) -> int:
    return int(sent[0]["status"])


def test_a_body_that_does_not_come_is_ended(in_place: InPlace) -> None:
    async def test(place: Place) -> None:
        sent = await talk(place, [{"type": "http.request", "body": b"{", "more_body": True}])
        assert status(sent) == 408

    in_place(test, limits=Limits(body_timeout_s=0.05))


def test_a_flood_of_chunks_is_ended(in_place: InPlace, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("serve.doors.asgi.CHUNKS_MAX", 10)

    async def test(place: Place) -> None:
        flood = [{"type": "http.request", "body": b" ", "more_body": True}] * 20
        assert status(await talk(place, flood)) == 413

    in_place(test)


def test_a_client_that_leaves_before_its_body_is_complete_gets_no_answer(in_place: InPlace) -> None:
    async def test(place: Place) -> None:
        torn = [{"type": "http.request", "body": b"{", "more_body": True}, {"type": "http.disconnect"}]
        assert await talk(place, torn) == []
        assert place.engine.calls == []

    in_place(test)


def test_a_client_that_leaves_in_the_queue_frees_its_place(in_place: InPlace) -> None:
    async def test(place: Place) -> None:
        place.engine.gate.clear()
        first = asyncio.get_running_loop().create_task(talk(place, [{"type": "http.request", "body": GOOD}]))
        while not place.engine.calls:
            await asyncio.sleep(0)
        gone = await talk(place, [{"type": "http.request", "body": GOOD}, {"type": "http.disconnect"}])
        assert gone == []
        assert place.model.batcher.queued_rows == 0
        place.engine.gate.set()
        assert status(await first) == 200
        assert place.engine.calls == [1]

    in_place(test)


def test_overload_is_told_before_the_body_is_read(in_place: InPlace) -> None:
    async def test(place: Place) -> None:
        place.engine.gate.clear()
        loop = asyncio.get_running_loop()
        tasks = [loop.create_task(talk(place, [{"type": "http.request", "body": GOOD}])) for _ in range(3)]
        while place.model.batcher.queued_rows < 2:
            await asyncio.sleep(0)
        sent = await asyncio.wait_for(talk(place, []), 5)  # this client never sends its body
        assert status(sent) == 503
        assert (b"retry-after", b"1") in sent[0]["headers"]
        assert "maximum queue size" in json.loads(sent[1]["body"])["error"]
        place.engine.gate.set()
        assert [status(each) for each in await asyncio.gather(*tasks)] == [200] * 3

    in_place(test, limits=Limits(queue_rows=2), batching=BatchingSpec(max_rows=1, max_wait_ms=0.0))


@pytest.mark.parametrize(
    ("path", "found"),
    [("/digits/v2/health/live", 200), ("/digits", 404), ("/digitsX/v2/health/live", 404), ("/digits/v2", 200)],
)
def test_the_prefix_ends_at_a_slash(in_place: InPlace, path: str, found: int) -> None:
    """Ray Serve's replica compares with startswith alone (ray/serve/_private/replica.py)."""

    async def test(place: Place) -> None:
        sent = await talk(place, [{"type": "http.request"}], path, root_path="/digits", method="GET")
        assert status(sent) == found

    in_place(test)


def test_a_fault_of_ours_is_one_clients_500_without_a_traceback(
    in_place: InPlace, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*_: Any, **__: Any) -> None:
        raise KeyError("secret payload")

    async def test(place: Place) -> None:
        async with client(place) as http:
            with monkeypatch.context() as patch:
                patch.setattr("serve.handler.decode", broken)
                response = await http.post(INFER, content=GOOD)
            assert (response.status_code, "secret" in response.text) == (500, False)
            assert (await http.post(INFER, content=GOOD)).status_code == 200

    in_place(test)


def test_classification_gives_the_best_labels(in_place: InPlace) -> None:
    raw = json.loads(GOOD) | {"outputs": [{"name": "logits", "parameters": {"classification": 1}}]}
    response = ask(in_place, "POST", INFER, json.dumps(raw).encode())
    (output,) = response.json()["outputs"]
    assert (output["datatype"], output["shape"], output["data"]) == ("BYTES", [1, 1], ["6.000000:0:0"])


def test_raw_rows_that_do_not_fit_are_told(in_place: InPlace) -> None:
    for rows, words in (([], "rows"), ([["a", 1, 2]], "FP32"), ([[1, 2]], "shape")):
        response = ask(in_place, "POST", "/predict", json.dumps({"rows": rows}).encode(), human=True)
        assert response.status_code in (400, 422)
        assert words in response.json()["error"]


def test_the_log_holds_no_payload(in_place: InPlace, caplog: pytest.LogCaptureFixture) -> None:
    secret = json.dumps({"inputs": [{"name": "x", "shape": [1], "datatype": "BYTES", "data": ["hunter2"]}]}).encode()
    with caplog.at_level("DEBUG"):
        assert ask(in_place, "POST", INFER, secret).status_code == 400
    assert "hunter2" not in caplog.text
