"""The protocol over REST, without sockets: a path and a body become calls of the planes, their results an `Answer`.

Invariant: an answer's body is JSON or tensors; what the planes refuse leaves as the MantaError that they raised, and
`error_answer` is its form.

Covered: every REST path of the Open Inference Protocol v2 and of the extensions that the data plane lists.
Not covered: shared memory, trace and log settings: 501 with a JSON body, and not listed.
"""

from __future__ import annotations

import asyncio
import re
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Any

import orjson

from cluster.errors import MantaError, OverloadedError
from serve.handlers.controlplane import ControlPlane
from serve.handlers.dataplane import DataPlane, Decode
from serve.models.model import ServedModel
from serve.protocol.codec import InferRequest, check_depth, decode, encode
from serve.protocol.compression import accepted_encoding, compress, decompress
from serve.protocol.errors import bad_request, not_found, status_of, too_large
from serve.protocol.limits import Limits

JSON_TYPE = (b"content-type", b"application/json")
BINARY_TYPE = (b"content-type", b"application/octet-stream")
NOT_SERVED = re.compile(r"systemsharedmemory|cudasharedmemory|trace|logging")
JSON_HERE_BYTES = 256 << 10  # of a body that the event loop decodes itself: about 3 ms; larger ones a thread
PACKED_HERE_BYTES = 2 << 10  # what gzip makes of two MiB at its best
BINARY_HERE_BYTES = 16 << 20  # only its JSON is read; tensors stay where they are
COMPRESS_MIN_BYTES = 1024  # below this a compressed body is hardly shorter than its headers


@dataclass(frozen=True)
class Answer:
    """A response without a transport."""

    status: int
    body: bytes
    headers: tuple[tuple[bytes, bytes], ...] = (JSON_TYPE,)


@dataclass(frozen=True)
class InferCall:
    """What an infer request's transport said about its body."""

    header_length: str | None = None
    content_encoding: str = ""
    accept_encoding: str = ""


EMPTY = Answer(200, b"")
PLAIN_CALL = InferCall()


class Rest:
    """Answers every path below v2. Raises MantaError."""

    def __init__(self, dataplane: DataPlane, controlplane: ControlPlane) -> None:
        self._dataplane = dataplane
        self._controlplane = controlplane

    async def infer(self, name: str, version: str, body: bytes, call: InferCall = PLAIN_CALL) -> Answer:
        """POST v2/models/M[/versions/V]/infer."""
        limits = self._dataplane.limits

        def decode_body(model: ServedModel) -> InferRequest:
            packed = call.content_encoding
            content = decompress(body, packed, limits.decompressed_bytes) if packed else body
            return decode(content, call.header_length, model.signature, limits)

        decode_request: Decode[InferRequest] = decode_body
        if len(body) > PACKED_HERE_BYTES and len(body) > _bytes_here(call):
            decode_request = _elsewhere(decode_body)
        _, request, answer = await self._dataplane.infer(name, version, decode_request)
        return _infer_answer(*encode(answer, request), accept_encoding=call.accept_encoding)

    async def other(self, method: str, segments: list[str], body: bytes) -> Answer:
        """Every path below v2 but infer. `segments` are those after `v2`."""
        return await self._route(method, segments)(method, segments, body)

    def _route(self, method: str, segments: list[str]) -> Callable[[str, list[str], bytes], Awaitable[Answer]]:
        match segments:
            case [] | [""]:
                return _allow("GET", method, self._server)
            case ["health", "live" | "ready"]:
                return _allow("GET", method, self._health)
            case ["models", "stats"]:
                return _allow("GET", method, self._statistics)
            case ["models", _, *rest] if rest[-1:] == ["stats"] and len(rest) in (1, 3):
                return _allow("GET", method, self._statistics)
            case ["models", _, *rest] if _is_model_path(rest):
                return _allow("GET", method, self._model)
            case ["repository", "index"]:
                return _allow("POST", method, self._index)
            case ["repository", "models", _, "load" | "unload"]:
                return _allow("POST", method, self._load_or_unload)
            case [first, *_] if NOT_SERVED.fullmatch(first) or "trace" in segments:
                raise bad_request(f"/v2/{'/'.join(segments)[:80]} is an extension that is not served", status=501)
        raise not_found(f"there is no path /v2/{'/'.join(segments)[:200]}")

    async def _server(self, method: str, segments: list[str], body: bytes) -> Answer:
        return json_answer(self._dataplane.server_metadata())

    async def _health(self, method: str, segments: list[str], body: bytes) -> Answer:
        if segments[1] == "live":
            return json_answer({"live": True})
        ready = self._dataplane.ready
        return json_answer({"ready": ready}, status=200 if ready else 503)

    async def _model(self, method: str, segments: list[str], body: bytes) -> Answer:
        name, (version, what) = segments[1], _model_path(segments[2:])
        if what == "ready":
            return json_answer({"name": self._dataplane.find(name, version).name, "ready": True})
        if what == "config":
            return json_answer(self._dataplane.model_configuration(name, version))
        return json_answer(self._dataplane.model_metadata(name, version))

    async def _statistics(self, method: str, segments: list[str], body: bytes) -> Answer:
        if segments == ["models", "stats"]:
            return json_answer(self._dataplane.statistics())
        version, _ = _model_path(segments[2:])
        return json_answer(self._dataplane.statistics(segments[1], version))

    async def _index(self, method: str, segments: list[str], body: bytes) -> Answer:
        raw = self._object(body)
        ready = raw.get("ready", False)
        if not isinstance(ready, bool):
            raise bad_request(f"'ready' is {str(ready)[:40]!r}", rule="it must be true or false")
        return json_answer(self._controlplane.repository.index(ready_only=ready))

    async def _load_or_unload(self, method: str, segments: list[str], body: bytes) -> Answer:
        parameters = self._object(body).get("parameters") or {}
        if not isinstance(parameters, dict):
            raise bad_request("'parameters' is not an object")
        if segments[3] == "unload":
            await self._controlplane.unload(segments[2])
            return EMPTY
        if parameters:
            raise bad_request(
                f"a load with the parameters {', '.join(map(str, parameters))[:80]} is not served",
                rule="a model's files and configuration come from its bundle",
                status=501,
            )
        await self._controlplane.load(segments[2])
        return EMPTY

    def _object(self, body: bytes) -> dict[str, Any]:
        """A small JSON object of an administrative request; empty for an empty body."""
        if not body:
            return {}
        raw = read_json(body, self._dataplane.limits)
        if not isinstance(raw, dict):
            raise bad_request("the body is not a JSON object")
        return raw


def read_json(body: bytes, limits: Limits) -> Any:
    """A body as JSON of bounded size and depth. Raises ProtocolError 400, 413."""
    if len(body) > limits.body_bytes:
        raise too_large(f"the body has {len(body)} bytes", f"at most {limits.body_bytes}")
    try:
        raw = orjson.loads(body)
    except orjson.JSONDecodeError as error:
        raise bad_request(f"the body is not JSON: {str(error)[:200]}") from None
    check_depth(raw, limits.json_depth)
    return raw


def json_answer(value: Any, *, status: int = 200) -> Answer:
    """An answer with a JSON body."""
    return Answer(status, orjson.dumps(value, option=orjson.OPT_SERIALIZE_NUMPY))


def error_answer(error: MantaError) -> Answer:
    """The protocol's error object, with Retry-After where waiting helps."""
    status = status_of(error)
    headers: tuple[tuple[bytes, bytes], ...] = (JSON_TYPE,)
    if isinstance(error, OverloadedError):
        headers += ((b"retry-after", str(max(1, round(error.details.get("retry_after_s", 1)))).encode()),)
    return Answer(status, orjson.dumps({"error": error.message}), headers)


def wrong_verb(method: str, verb: str) -> Answer:
    """405, with the verb that the path takes (RFC 9110, 15.5.6)."""
    answer = text_error(405, f"the verb is {method[:20]}; this path takes {verb}")
    return Answer(answer.status, answer.body, (*answer.headers, (b"allow", verb.encode())))


def text_error(status: int, message: str) -> Answer:
    """An error that has no exception: for the doors."""
    return Answer(status, orjson.dumps({"error": message}))


def _elsewhere(decode_body: Callable[[ServedModel], InferRequest]) -> Decode[InferRequest]:
    """The same in a thread."""

    async def decode_request(model: ServedModel) -> InferRequest:
        return await asyncio.to_thread(decode_body, model)

    return decode_request


def _bytes_here(call: InferCall) -> int:
    if call.content_encoding:
        return PACKED_HERE_BYTES
    return JSON_HERE_BYTES if call.header_length is None else BINARY_HERE_BYTES


def _infer_answer(body: bytes, json_length: int | None, *, accept_encoding: str) -> Answer:
    headers: tuple[tuple[bytes, bytes], ...] = (JSON_TYPE,)
    if json_length is not None:
        headers = (BINARY_TYPE, (b"inference-header-content-length", str(json_length).encode()))
    if accept_encoding and len(body) >= COMPRESS_MIN_BYTES:
        encoding = accepted_encoding(accept_encoding)
        if encoding:
            body = compress(body, encoding)
            headers += ((b"content-encoding", encoding.encode()),)
    return Answer(200, body, headers)


def _allow(
    verb: str, method: str, route: Callable[[str, list[str], bytes], Awaitable[Answer]]
) -> Callable[[str, list[str], bytes], Awaitable[Answer]]:
    if method == verb or (method, verb) == ("HEAD", "GET"):  # the server sends a HEAD's answer without its body
        return route

    async def refuse(method: str, segments: list[str], body: bytes) -> Answer:
        return wrong_verb(method, verb)

    return refuse


def _is_model_path(rest: list[str]) -> bool:
    match rest:
        case [] | ["ready" | "config"] | ["versions", _] | ["versions", _, "ready" | "config"]:
            return True
    return False


def _model_path(rest: list[str]) -> tuple[str, str]:
    """`[versions, V, what]` as (V, what); both may be empty."""
    if rest[:1] == ["versions"]:
        return rest[1], rest[2] if len(rest) > 2 else ""
    return "", rest[0] if rest else ""
