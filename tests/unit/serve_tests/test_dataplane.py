"""One data plane: the same request has the same outcome, count and log line through every door that can say it.

Doors: REST with JSON, REST with binary tensors, gRPC, and /predict with raw rows. A case is written once; each door's
`send` says it in its own words. Statuses are compared in HTTP's numbers; what an answer or an error holds beside them
is compared where the doors have the same form for it.
"""

from __future__ import annotations

import asyncio
import hashlib
import importlib.metadata
import io
import json
from collections import Counter
from collections.abc import Callable, Coroutine, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import grpc
import httpx
import numpy as np
import pytest

from cluster.spec.serve import BatchingSpec
from serve.access import Access
from serve.doors.predict import readable
from serve.doors.rpc import Rpc, add_to_server
from serve.handlers.access_log import AccessLog, open_access_log
from serve.proto import inference_pb2, inference_pb2_grpc
from serve.protocol.errors import GRPC_OF_STATUS
from serve.protocol.limits import Limits
from tests.unit.serve_tests.conftest import Place

TOKEN = "secret-token-0123456789"
ALL, TENSORS, BINARY = ("json", "binary", "grpc", "rows"), ("json", "binary", "grpc"), ("binary", "grpc")
ROW = [[1.0, 2.0, 3.0]]


@dataclass(frozen=True)
class Tensor:
    """One input. `shape` and `parameters` may lie."""

    values: Any
    name: str = "x"
    datatype: str = "FP32"
    shape: tuple[int, ...] | None = None
    parameters: dict[str, Any] = field(default_factory=dict)

    @property
    def array(self) -> np.ndarray:
        kinds = {"FP64": np.float64, "INT32": np.int32, "INT64": np.int64}
        return np.array(self.values, kinds.get(self.datatype, np.float32))

    @property
    def says(self) -> list[int]:
        return list(self.array.shape if self.shape is None else self.shape)


@dataclass(frozen=True)
class Case:
    """A request, and the HTTP status of its outcome."""

    what: str
    status: int
    inputs: tuple[Tensor, ...] = (Tensor(ROW),)
    doors: tuple[str, ...] = TENSORS
    outputs: tuple[tuple[str, dict[str, Any]], ...] = ()
    parameters: dict[str, Any] = field(default_factory=dict)
    model: str = "m"
    version: str = ""
    token: str = TOKEN
    state: str = ""
    """What the endpoint is in: `full`, `unloaded`, or the engine's fault."""


def rows(values: Any, what: str, status: int = 200, **more: Any) -> Case:
    return Case(what, status, (Tensor(values),), **{"doors": ALL, **more})


def wrong(what: str, *inputs: Tensor, status: int = 400, **more: Any) -> Case:
    return Case(what, status, inputs or (Tensor(ROW),), **more)


MEMORY = {"shared_memory_region": "r"}
GOOD = [
    rows(ROW, "one row"),
    rows(ROW * 2, "two rows"),
    rows(ROW * 8, "a whole batch"),
    rows(ROW * 9, "more than a batch"),
    rows([[0, 0, 0]], "zeros"),
    rows([[-1, -2, -3]], "negative numbers"),
    rows([[1e30, 1, 1]], "a large number"),
    rows([[1e-30, 0, 0]], "a small number"),
    rows([[0.1, 0.2, 0.3], [4, 5, 6]], "fractions"),
    rows(ROW, "the version by its number", version="1"),
    Case("an id", 200, parameters={"id": "7"}),
    Case("the most urgent priority", 200, parameters={"priority": 1}),
    Case("the model's priority", 200, parameters={"priority": 0}),
    Case("a priority past the levels", 200, parameters={"priority": 99}),
    Case("a timeout", 200, parameters={"timeout": 10_000_000}),
    Case("no sequence", 200, parameters={"sequence_id": 0}),
    Case("a parameter that nobody reads", 200, parameters={"color": "red"}),
    Case("the output by its name", 200, outputs=(("logits", {}),)),
    Case("the best class", 200, outputs=(("logits", {"classification": 1}),)),
    Case("all classes", 200, outputs=(("logits", {"classification": 9}),)),
]
BAD = [
    wrong("an unknown model", status=404, model="other"),
    rows(ROW, "an unknown version", 404, version="7"),
    rows(ROW, "a version that is no number", 400, version="latest"),
    rows(ROW, "a negative version", 400, version="-1"),
    rows(ROW, "no token", 401, token=""),
    rows(ROW, "a wrong token", 401, token="another-token-0123456789"),
    Case("no inputs", 400, ()),
    wrong("an unknown input", Tensor(ROW, "y")),
    wrong("one input too many", Tensor(ROW), Tensor(ROW, "y")),
    wrong("an input twice", Tensor(ROW), Tensor(ROW)),
    wrong("an input without a name", Tensor(ROW, "")),
    wrong("an input with a NUL in its name", Tensor(ROW, "x\0")),
    wrong("another datatype", Tensor(ROW, datatype="FP64")),
    wrong("whole numbers", Tensor(ROW, datatype="INT32")),
    wrong("an unknown datatype", Tensor(ROW, datatype="FP7")),
    rows([[1, 2, 3, 4]], "a row that is too long", 400),
    rows([[1, 2]], "a row that is too short", 400),
    rows([1, 2, 3], "no axis of rows", 400),
    rows([[[1, 2, 3]]], "an axis too many", 400),
    Case("no rows", 400, (Tensor(np.zeros((0, 3)).tolist(), shape=(0, 3)),), ALL),
    wrong("fewer values than the shape", Tensor(ROW, shape=(2, 3))),
    wrong("more values than the shape", Tensor(ROW * 2, shape=(1, 3))),
    wrong("a negative size", Tensor(ROW, shape=(-1, 3))),
    wrong("a shape of 2^60", Tensor(ROW, shape=(2**30, 2**30)), status=413),
    wrong("33 axes", Tensor(ROW, shape=(1,) * 32 + (3,))),
    wrong("NaN", Tensor([[1, np.nan, 3]]), doors=BINARY),
    wrong("infinity", Tensor([[1, np.inf, 3]]), doors=BINARY),
    wrong("minus infinity", Tensor([[1, 2, -np.inf]]), doors=BINARY),
    wrong("a number past FP32", Tensor([[1, 2, 1e39]], shape=(1, 3)), doors=("json", "rows")),
    wrong("an unknown output", outputs=(("other", {}),)),
    wrong("an output twice", outputs=(("logits", {}), ("logits", {}))),
    wrong("an output in shared memory", status=501, outputs=(("logits", MEMORY),)),
    wrong("an input in shared memory", Tensor(ROW, parameters=MEMORY), status=501),
    wrong("fewer than no classes", outputs=(("logits", {"classification": -1}),)),
    wrong("a sequence", status=501, parameters={"sequence_id": 3}),
    wrong("a sequence by name", status=501, parameters={"sequence_id": "s"}),
    wrong("a negative priority", parameters={"priority": -1}),
    wrong("a priority that is true", parameters={"priority": True}),
    wrong("a priority in words", parameters={"priority": "high"}),
    wrong("a fraction of a priority", parameters={"priority": 1.5}),
    wrong("a negative timeout", parameters={"timeout": -1}),
    wrong("a timeout in words", parameters={"timeout": "soon"}),
    rows(ROW, "a full queue", 503, state="full"),
    rows([[1, 2]], "a wrong request to a full queue", 503, state="full"),
    rows(ROW, "no version is loaded", 503, state="unloaded"),
    rows(ROW, "an engine that raises", 500, state="raises"),
    rows(ROW, "an engine that answers NaN", 500, state="nan"),
    rows(ROW, "an engine that forgets an output", 500, state="forgets"),
    rows(ROW * 2, "an engine that loses a row", 500, state="loses"),
]
CASES = [*GOOD, *BAD]


@dataclass(frozen=True)
class Outcome:
    """What became of a case through one door."""

    status: int
    """HTTP's; of a gRPC call the code's name."""
    answer: Any
    """The outputs, name -> values; None beside an error."""
    counted: dict[str, int]
    logged: list[dict[str, Any]]


Send = Callable[[Case], Coroutine[Any, Any, tuple[Any, Any]]]


def test_there_are_at_least_60_cases_with_names_of_their_own() -> None:
    assert len({case.what for case in CASES}) == len(CASES) >= 60


@pytest.fixture(scope="module")
def outcomes(small_bundle: Path) -> dict[tuple[str, str], Outcome]:
    """(case, door) -> outcome. Every case through every door that can say it, in one endpoint."""

    async def whole() -> dict[tuple[str, str], Outcome]:
        place = Place(small_bundle, limits=Limits(), batching=BatchingSpec(max_rows=8, max_wait_ms=0.0), pages=True)
        place.dataplane.access = Access(infer=(hashlib.sha256(TOKEN.encode()).digest(),))
        place.dataplane.access_log = AccessLog("m", share=1.0)
        try:
            return await asyncio.wait_for(_through_every_door(place), 60)
        finally:
            await place.close()

    return asyncio.run(whole())


async def _through_every_door(place: Place) -> dict[tuple[str, str], Outcome]:
    lines = io.StringIO()
    open_access_log(lines)
    server = grpc.aio.server()
    add_to_server(Rpc(place.dataplane, place.controlplane), server)
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    found = {}
    transport = httpx.ASGITransport(place.door)
    async with (
        grpc.aio.insecure_channel(f"127.0.0.1:{port}") as channel,
        httpx.AsyncClient(transport=transport, base_url="http://x") as http,
    ):
        stub = inference_pb2_grpc.GRPCInferenceServiceStub(channel)
        doors: dict[str, Send] = {
            "json": lambda case: send_rest(http, case, binary=False),
            "binary": lambda case: send_rest(http, case, binary=True),
            "grpc": lambda case: send_grpc(stub, case),
            "rows": lambda case: send_rows(http, case),
        }
        for case in CASES:
            for door in case.doors:
                before = Counter(place.model.statistics.outcomes)
                lines.seek(0)
                lines.truncate()
                with in_state(place, case.state):
                    status, answer = await doors[door](case)
                counted = dict(Counter(place.model.statistics.outcomes) - before)
                logged = [json.loads(line) for line in lines.getvalue().splitlines()]
                found[case.what, door] = Outcome(status, answer, counted, logged)
        await server.stop(5)
    return found


@contextmanager
def in_state(place: Place, state: str) -> Iterator[None]:
    batcher, model = place.model.batcher, place.model
    zeros = np.zeros((1, 2), np.float32)
    faults: dict[str, Any] = {
        "raises": lambda inputs: 1 / 0,
        "nan": lambda inputs: {"logits": np.full((len(inputs["x"]), 2), np.nan, np.float32)},
        "forgets": lambda inputs: {"other": zeros},
        "loses": lambda inputs: {"logits": zeros[: len(inputs["x"]) - 2]},
    }
    place.engine.fault = faults.get(state)
    place.repository.default = None if state == "unloaded" else model
    if state == "unloaded":
        place.repository.models, place.repository.reasons = {}, {"1": "unloaded"}
    queued = Limits().queue_rows if state == "full" else 0
    batcher.queued_rows += queued
    try:
        yield
    finally:
        batcher.queued_rows -= queued
        place.engine.fault, place.repository.default = None, model
        place.repository.models, place.repository.reasons = {"1": model}, {}


async def send_rest(http: httpx.AsyncClient, case: Case, *, binary: bool) -> tuple[Any, Any]:
    entries, blobs = [], []
    for tensor in case.inputs:
        entry: dict[str, Any] = {"name": tensor.name, "shape": tensor.says, "datatype": tensor.datatype}
        if binary and not tensor.parameters:
            blobs.append(tensor.array.tobytes())
            entry["parameters"] = {"binary_data_size": len(blobs[-1])}
        elif not tensor.parameters:
            entry["data"] = tensor.values
        else:
            entry["parameters"] = tensor.parameters
        entries.append(entry)
    parameters = dict(case.parameters)
    identity = parameters.pop("id", None)
    raw: dict[str, Any] = {"inputs": entries, "parameters": parameters | {"binary_data_output": binary}}
    if identity is not None:
        raw["id"] = identity
    if case.outputs:
        raw["outputs"] = [{"name": name, "parameters": more} for name, more in case.outputs]
    head = json.dumps(raw).encode()
    headers = {"inference-header-content-length": str(len(head))} if binary else {}
    at = f"/versions/{case.version}" if case.version else ""
    path = f"/v2/models/{case.model}{at}/infer"
    response = await http.post(path, content=b"".join((head, *blobs)), headers=headers | bearer(case))
    if response.status_code != 200:
        assert list(response.json()) == ["error"]
        return response.status_code, None
    length = int(response.headers.get("inference-header-content-length", len(response.content)))
    body, rest = json.loads(response.content[:length]), response.content[length:]
    assert body.get("id") == identity
    found = {}
    for output in body["outputs"]:
        size = output.get("parameters", {}).get("binary_data_size", 0)
        data = values_of(rest[:size], output["datatype"]) if binary else rounded(output)
        found[output["name"]] = (output["datatype"], output["shape"], data)
        rest = rest[size:]
    return 200, (body["model_version"], found)


async def send_grpc(stub: Any, case: Case) -> tuple[Any, Any]:
    parameters = dict(case.parameters)
    message = inference_pb2.ModelInferRequest(
        model_name=case.model, model_version=case.version, id=parameters.pop("id", "")
    )
    put(message.parameters, parameters)
    for tensor in case.inputs:
        entry = message.inputs.add(name=tensor.name, datatype=tensor.datatype, shape=tensor.says)
        put(entry.parameters, tensor.parameters)
        message.raw_input_contents.append(tensor.array.tobytes())
    for name, more in case.outputs:
        put(message.outputs.add(name=name).parameters, more)
    try:
        answer = await stub.ModelInfer(message, metadata=[(key.lower(), value) for key, value in bearer(case).items()])
    except grpc.aio.AioRpcError as error:
        return error.code().name, None
    assert answer.id == message.id
    found = {
        output.name: (output.datatype, list(output.shape), values_of(raw, output.datatype))
        for output, raw in zip(answer.outputs, answer.raw_output_contents, strict=True)
    }
    return 200, (answer.model_version, found)


async def send_rows(http: httpx.AsyncClient, case: Case) -> tuple[Any, Any]:
    body = {"rows": case.inputs[0].values, "version": case.version}
    response = await http.post("/predict", content=json.dumps(body).encode(), headers=bearer(case))
    if response.status_code != 200:
        assert list(response.json()) == ["error"]
        return response.status_code, None
    return 200, (response.json()["version"], response.json()["predictions"])


def bearer(case: Case) -> dict[str, str]:
    return {"Authorization": f"Bearer {case.token}"} if case.token else {}


def put(parameters: Any, values: dict[str, Any]) -> None:
    kinds = {bool: "bool_param", int: "int64_param", str: "string_param", float: "double_param"}
    for name, value in values.items():
        setattr(parameters[name], kinds[type(value)], value)


def rounded(output: dict[str, Any]) -> list[Any]:
    """JSON has the shortest digits of a number, not its bits."""
    return [float(np.float32(value)) if output["datatype"] == "FP32" else value for value in output["data"]]


def values_of(raw: bytes, datatype: str) -> list[Any]:
    if datatype == "FP32":
        return [float(value) for value in np.frombuffer(raw, np.float32)]
    found = []
    while raw:
        length = int.from_bytes(raw[:4], "little")
        found.append(raw[4 : 4 + length].decode())
        raw = raw[4 + length :]
    return found


def in_words(outputs: dict[str, Any]) -> list[dict[str, Any]]:
    _, shape, values = outputs["logits"]
    return readable(np.array(values, np.float32).reshape(shape), "classification", ("0", "1"))


EACH = [pytest.param(case, door, id=f"{case.what}-{door}") for case in CASES for door in case.doors]
COUNTED = {200: "success", 400: "bad_request", 413: "bad_request", 501: "bad_request", 500: "failed"}


@pytest.mark.parametrize(("case", "door"), EACH)
def test_a_request_has_the_same_status_answer_count_and_log_line_through_every_door(
    outcomes: dict[tuple[str, str], Outcome], case: Case, door: str
) -> None:
    found = outcomes[case.what, door]
    full = case.state == "full"
    if door == "grpc" and case.status != 200:
        assert found.status == ("RESOURCE_EXHAUSTED" if full else GRPC_OF_STATUS[case.status])
    else:
        assert found.status == case.status
    reached = case.model == "m" and case.version in ("", "1") and case.token == TOKEN and case.state != "unloaded"
    outcome = "queue_full" if full else COUNTED.get(case.status)
    assert found.counted == ({outcome: 1} if reached else {})
    (line,) = found.logged
    assert line["status"] == ("OK" if door == "grpc" and case.status == 200 else found.status)
    reference = outcomes[case.what, case.doors[0]]
    if door != "rows" or case.status != 200:
        assert found.answer == reference.answer
    else:
        version, outputs = reference.answer
        assert found.answer == (version, in_words(outputs))


def test_the_server_names_itself_without_an_installed_package(
    in_place: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The serving image has the code alone. Statistics without a name are of all models, whatever version is named."""

    def nothing(name: str) -> str:
        raise importlib.metadata.PackageNotFoundError(name)

    async def ask(place: Place) -> None:
        monkeypatch.setattr(importlib.metadata, "version", nothing)
        assert place.dataplane.server_metadata()["version"] == "unknown"
        assert place.dataplane.statistics("", "1") == place.dataplane.statistics()

    in_place(ask)
