"""The HTTP door: hostile bodies and odd requests get a JSON error, and the next client is served as if nothing was."""

from __future__ import annotations

import asyncio
import gzip
import hashlib
import json
import zlib
from collections.abc import Callable
from typing import Any

import httpx
import numpy as np
import pytest

from cluster.errors import ProtocolError
from cluster.spec.serve import BatchingSpec
from serve.access import Access
from serve.doors.rpc import Rpc
from serve.proto import inference_pb2
from serve.protocol.errors import grpc_code_of
from serve.protocol.limits import Limits
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
@pytest.mark.parametrize("pages", [True, False])
def test_every_wrong_path_and_verb_is_a_json_error(
    in_place: InPlace, method: str, path: str, status: int, pages: bool
) -> None:
    response = ask(in_place, method, path, pages=pages)
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
                patch.setattr("serve.doors.rest.decode", broken)
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
    for rows, words in (([], "rows"), ([["a", 1, 2]], "FP32"), ([[1, 2]], "shape"), ([[True, 2, 3]], "true or false"),
                        ([[1e39, 2, 3]], "NaN or infinity"), ([[None, 2, 3]], "other values")):  # fmt: skip
        response = ask(in_place, "POST", "/predict", json.dumps({"rows": rows}).encode(), pages=True)
        assert (response.status_code, words in response.json()["error"]) == (400, True), response.text


@pytest.mark.parametrize(
    "body",
    [b"", b"{", b"[]", b"null", b'{"rows": 3}', b'{"rows": [[1, 2, NaN]]}', b'{"rows": [[1, 2, 3]], "more": 1}',
     b'{"rows": [[1, 2, 3]], "version": 1}', b'{"rows": [[1, 2, 3]], "rows": [' + b"[" * 200 + b"]" * 200 + b"]}",
     b'{"rows": [[1, 2, 1e999]]}', b"\xff\xfe", b'{"rows": [[1, 2, 3]]} x'],
)  # fmt: skip
def test_a_wrong_body_of_raw_rows_is_a_400_in_json(in_place: InPlace, body: bytes) -> None:
    response = ask(in_place, "POST", "/predict", body, pages=True)
    assert (response.status_code, list(response.json())) == (400, ["error"]), response.text


@pytest.mark.parametrize("kind", ["application/json", "application/x-www-form-urlencoded", "text/plain"])
def test_raw_rows_are_json_whatever_their_content_type_says(in_place: InPlace, kind: str) -> None:
    """`curl -d` says that it sends a form."""
    response = ask(in_place, "POST", "/predict", b'{"rows": [[1, 2, 3]]}', headers={"content-type": kind}, pages=True)
    assert response.status_code == 200, response.text


@pytest.mark.parametrize(
    ("body", "kind"),
    [(b"\x89PNG\r\n\x1a\n", ""), (b"\xff\xd8\xff\xe0", "application/x-www-form-urlencoded"), (b"x", "image/webp"),
     (b"--x--", "multipart/form-data; boundary=x")],
)  # fmt: skip
def test_a_file_at_predict_is_told_where_image_files_go(in_place: InPlace, body: bytes, kind: str) -> None:
    response = ask(in_place, "POST", "/predict", body, headers={"content-type": kind} if kind else {}, pages=True)
    assert (response.status_code, "/predict/image" in response.json()["error"]) == (415, True)


def test_pages_of_other_origins_may_ask_only_where_the_endpoint_says_so(in_place: InPlace) -> None:
    async def test(place: Place) -> None:
        place.dataplane.access = Access(infer=(hashlib.sha256(b"t").digest(),))
        ask_first = {"access-control-request-method": "POST", "access-control-request-headers": "authorization"}
        async with client(place) as http:

            async def talk(origin: str) -> tuple[Any, ...]:
                headers = {"origin": origin}
                before = await http.options(INFER, headers=headers | ask_first)
                answer = await http.post(INFER, content=GOOD, headers=headers | {"authorization": "Bearer t"})
                refused = await http.post(INFER, content=GOOD, headers=headers)
                assert (answer.status_code, refused.status_code) == (200, 401)
                allowed = {each.headers.get("access-control-allow-origin") for each in (before, answer, refused)}
                return before.status_code, before.headers.get("access-control-allow-headers"), allowed

            ours, other = "https://shop.example", "https://other.example"
            assert await talk(ours) == (405, None, {None})
            place.dataplane.cors_origins = (ours,)
            assert await talk(ours) == (204, "authorization", {ours})
            assert await talk(other) == (403, None, {None})
            place.dataplane.cors_origins = ("*",)
            assert await talk(other) == (204, "authorization", {other})
            found = await http.get("/health", headers={"origin": other})
            assert found.headers["access-control-allow-origin"] == other

    in_place(test, pages=True)


def test_health_is_open_and_follows_readiness(in_place: InPlace) -> None:
    async def test(place: Place) -> None:
        place.dataplane.access = Access(infer=(b"0" * 32,))
        async with client(place) as http:
            for ready, status in ((True, 200), (False, 503)):
                place.repository.default = place.model if ready else None
                answer = await http.get("/health")
                assert (answer.status_code, answer.json()) == (status, {"ready": ready})

    in_place(test, pages=True)


def test_the_api_page_describes_the_body_and_no_422(in_place: InPlace) -> None:
    found = ask(in_place, "GET", "/openapi.json", pages=True).json()["paths"]["/predict"]["post"]
    assert "rows" in found["requestBody"]["content"]["application/json"]["schema"]["properties"]
    assert sorted(found["responses"]) == ["200", "4XX"]


@pytest.mark.parametrize(
    ("data", "status"),
    [([1, 2, 3], 200), ([True, 2, 3], 400), ([[1.0, 2.0, False]], 400), ([True, True, True], 400), ([1, 2, 1e39], 400)],
)
def test_true_is_not_1_and_a_number_past_fp32_is_refused_in_protocol_json(
    in_place: InPlace, data: Any, status: int
) -> None:
    body = json.dumps({"inputs": [{"name": "x", "shape": [1, 3], "datatype": "FP32", "data": data}]}).encode()
    assert ask(in_place, "POST", INFER, body).status_code == status


BAD = (np.nan, np.inf, -np.inf)


@pytest.mark.parametrize("bad", BAD)
def test_a_non_finite_binary_input_is_its_senders_400_and_never_reaches_the_engine(
    in_place: InPlace, bad: float
) -> None:
    async def test(place: Place) -> None:
        async with client(place) as http:
            whole, raw = binary([[1, 2, 3], [4, bad, 6]]), np.array([1, bad, 3], np.float32).tobytes()
            for body, length in (whole, (raw, "0")):
                response = await http.post(INFER, content=body, headers={"inference-header-content-length": length})
                assert response.status_code == 400
                assert "input 'x' holds NaN or infinity in row" in response.json()["error"]
            assert place.engine.calls == []
            assert place.model.statistics.outcomes == {"bad_request": 2}
            assert (await http.post(INFER, content=GOOD)).status_code == 200

    in_place(test)


def test_a_switch_lets_non_finite_inputs_pass_and_the_engines_own_are_a_500(in_place: InPlace) -> None:
    async def test(place: Place) -> None:
        assert place.repository.config is not None
        place.model.follow(place.repository.config.with_values({"allow_non_finite": True}))
        async with client(place) as http:
            body, length = binary([[1, 2, np.nan]])
            headers = {"inference-header-content-length": length}
            assert place.engine.calls == []
            response = await http.post(INFER, content=body, headers=headers)
            assert (place.engine.calls, response.status_code) == ([1], 500)
            assert "Cannot use the model's answer: output 'logits' holds NaN" in response.json()["error"]
            place.engine.fault = lambda inputs: {"logits": np.zeros((len(inputs["x"]), 2), np.float32)}
            assert (await http.post(INFER, content=body, headers=headers)).status_code == 200

    in_place(test)


@pytest.mark.parametrize("form", ["raw", "contents"])
def test_a_non_finite_input_over_grpc_is_invalid(in_place: InPlace, form: str) -> None:
    async def test(place: Place) -> None:
        request = inference_pb2.ModelInferRequest(model_name="m")
        tensor = request.inputs.add(name="x", datatype="FP32", shape=[1, 3])
        if form == "raw":
            request.raw_input_contents.append(np.array([1, np.nan, 3], np.float32).tobytes())
        else:
            tensor.contents.fp32_contents.extend([1, np.inf, 3])
        with pytest.raises(ProtocolError, match="NaN or infinity") as caught:
            await Rpc(place.dataplane, place.controlplane).ModelInfer(request)
        assert (grpc_code_of(caught.value), place.engine.calls) == ("INVALID_ARGUMENT", [])

    in_place(test)


def binary(rows: list[list[float]]) -> tuple[bytes, str]:
    """A request of binary FP32 rows, and the length of its JSON."""
    array = np.array(rows, np.float32)
    tensor = {"name": "x", "shape": array.shape, "datatype": "FP32", "parameters": {"binary_data_size": array.nbytes}}
    head = json.dumps({"inputs": [tensor]}).encode()
    return head + array.tobytes(), str(len(head))


def test_the_log_holds_no_payload(in_place: InPlace, caplog: pytest.LogCaptureFixture) -> None:
    secret = json.dumps({"inputs": [{"name": "x", "shape": [1], "datatype": "BYTES", "data": ["hunter2"]}]}).encode()
    with caplog.at_level("DEBUG"):
        assert ask(in_place, "POST", INFER, secret).status_code == 400
    assert "hunter2" not in caplog.text
