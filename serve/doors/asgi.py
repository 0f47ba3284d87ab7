"""The HTTP door: plain ASGI, no framework on the way of an infer request.

Order of work for an infer request: path -> `DataPlane.authorize` and `admit` -> body within limits -> `Rest.infer` ->
one response. Everything below /v2 is answered here; every other path goes to `pages` (serve/doors/predict.py).

Invariants: every answer below /v2 is JSON or tensors, errors included; a body never takes more memory than
`Limits.body_bytes`; a client that leaves frees its place in the queue.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any, cast

from cluster.errors import MantaError
from serve.batching.timers import SharedTimer
from serve.doors.cors import preflight, with_origin
from serve.doors.rest import Answer, InferCall, Rest, error_answer, text_error, wrong_verb
from serve.handlers.access_log import Seen
from serve.handlers.controlplane import ControlPlane
from serve.handlers.dataplane import DataPlane
from serve.handlers.peers import CALLER, SELF, SELF_HEADER, Caller
from serve.protocol.errors import INTERNAL_ERROR, bad_request, too_large
from serve.protocol.limits import Limits

LOG = logging.getLogger(__name__)
Scope = MutableMapping[str, Any]
Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
App = Callable[[Scope, Receive, Send], Awaitable[None]]

WATCH_AFTER_S = 0.02  # most requests are answered by then; for the others a task waits for the client to leave
# descriptions of the API, the same for every endpoint, and what load balancers, which have no token, ask
OPEN_PATHS = ("/", "/docs", "/openapi.json", "/health")
GONE = 499  # in the access log, as nginx counts a client that left before its answer
REQUEST_ID = b"x-request-id"
LOGGED_CHARACTERS_MAX = 200  # of a header
CANARY_HEADER = b"x-manta-canary"  # of an infer request: always, never, else by its share
CHUNKS_MAX = 65536  # of one body: a flood of one-byte chunks costs more than its bytes


class ClientGone(Exception):
    """The client left before its body was complete."""


class AsgiDoor:
    """An ASGI application over the planes of an endpoint. `pages` answers what is not below /v2."""

    def __init__(self, dataplane: DataPlane, controlplane: ControlPlane, pages: App | None = None) -> None:
        self.dataplane = dataplane
        self.controlplane = controlplane
        self.rest = Rest(dataplane, controlplane)
        self._pages = pages
        self._limits = dataplane.limits
        self._late_bodies: set[asyncio.Task[Any]] = set()
        self._bodies = SharedTimer(self._limits.body_timeout_s, self._body_is_late)
        self._watches = SharedTimer(WATCH_AFTER_S, _Watch.start)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        kind = scope["type"]
        if kind == "http":
            send = with_request_id(scope, send)
            if self.dataplane.cors_origins:
                send = with_origin(scope["headers"], self.dataplane.cors_origins, send)
                answer = preflight(scope["method"], scope["headers"], self.dataplane.cors_origins)
                if answer is not None:
                    await respond(send, answer)
                    return
            if self.dataplane.access_log.sampled():
                await self._logged(scope, receive, send)
            else:
                await self._http(scope, receive, send)
        elif kind == "lifespan":
            await _lifespan(receive, send)
        elif kind == "websocket":
            await send({"type": "websocket.close", "code": 1003})

    async def _logged(self, scope: Scope, receive: Receive, send: Send) -> None:
        headers = scope["headers"]
        chain = _text(headers, b"x-forwarded-for")[-LOGGED_CHARACTERS_MAX:]
        seen = Seen(GONE, request_id=_text(headers, REQUEST_ID)[:LOGGED_CHARACTERS_MAX], forwarded_for=chain)

        async def counted_receive() -> Message:
            message = await receive()
            seen.request_bytes += len(message.get("body", b""))
            return message

        async def counted_send(message: Message) -> None:
            if message["type"] == "http.response.start":
                seen.status = message["status"]
            seen.response_bytes += len(message.get("body", b""))
            await send(message)

        client = scope.get("client") or ("", 0)
        with self.dataplane.access_log.line(client[0], scope["method"], scope["path"], seen):
            await self._http(scope, counted_receive, counted_send)

    async def _http(self, scope: Scope, receive: Receive, send: Send) -> None:
        path = _local_path(scope)
        segments = path.split("/")
        if segments[1:2] != ["v2"]:
            await self._page(scope, path, receive, send)
            return
        try:
            answer = await self._answer(scope, segments[2:], receive)
        except ClientGone:
            return
        except MantaError as error:
            answer = error_answer(error)
        except Exception:
            LOG.exception("a request to %s raised", path[:200])
            answer = text_error(500, INTERNAL_ERROR)
        await respond(send, answer)

    async def _page(self, scope: Scope, path: str, receive: Receive, send: Send) -> None:
        if self._pages is None:
            await respond(send, text_error(404, f"there is no path {path[:200]}"))
            return
        try:
            if path not in OPEN_PATHS:
                self.dataplane.authorize(_text(scope["headers"], b"authorization"))
        except MantaError as error:
            await respond(send, error_answer(error))
            return
        body = LimitedBody(receive, self._limits, _header(scope["headers"], b"content-length"))
        if body.refused is not None:
            await respond(send, error_answer(body.refused))
        else:
            await self._pages(scope, body.receive, body.guarded(send))

    async def _answer(self, scope: Scope, segments: list[str], receive: Receive) -> Answer:
        match segments:
            case ["models", name, "infer"]:
                return await self._infer(scope, name, "", receive)
            case ["models", name, "versions", version, "infer"]:
                return await self._infer(scope, name, version, receive)
        method = scope["method"]
        if segments[:1] != ["health"]:  # load balancers have no token
            is_admin = segments[-1:] in (["load"], ["unload"])
            authorization = _text(scope["headers"], b"authorization")
            self.dataplane.authorize(authorization, admin=is_admin)
            CALLER.set(Caller(authorization, _text(scope["headers"], SELF_HEADER.encode()) == SELF))
        body = b"" if method in ("GET", "HEAD") else await self._body(scope["headers"], receive)
        return await self.rest.other(method, segments, body)

    async def _infer(self, scope: Scope, name: str, version: str, receive: Receive) -> Answer:
        if scope["method"] != "POST":
            return wrong_verb(scope["method"], "POST")
        headers = scope["headers"]
        if self.dataplane.access.infer:  # an open endpoint skips the scan of headers
            self.dataplane.authorize(_text(headers, b"authorization"))
        if self.dataplane.repository.canary is not None and not version:
            version = self.dataplane.repository.version_asked(_text(headers, CANARY_HEADER))
        self.dataplane.admit(name, version)
        body = await self._body(headers, receive)
        call = _call(headers)
        gone = _Watch(receive)
        self._watches.add(gone)
        try:
            return await self.rest.infer(name, version, body, call)
        except asyncio.CancelledError:
            if gone.left:
                raise ClientGone from None
            raise
        finally:
            self._watches.discard(gone)
            gone.stop()

    async def _body(self, headers: list[tuple[bytes, bytes]], receive: Receive) -> bytes:
        """The request's body, within its limits. Raises ProtocolError 400, 408, 413."""
        limit = self._limits.body_bytes
        declared = _header(headers, b"content-length")
        if declared is not None and (not declared.isdigit() or int(declared) > limit):
            raise too_large(f"the body has {declared[:20].decode('latin-1')} bytes", f"at most {limit}")
        task = cast(asyncio.Task[Any], asyncio.current_task())
        self._bodies.add(task)
        try:
            return await read_body(receive, limit)
        except asyncio.CancelledError:
            if task not in self._late_bodies or task.uncancel() > 0:
                raise
            raise bad_request("the body did not arrive in time", status=408) from None
        finally:
            self._bodies.discard(task)
            self._late_bodies.discard(task)

    def _body_is_late(self, task: asyncio.Task[Any]) -> None:
        self._late_bodies.add(task)
        task.cancel()


async def read_body(receive: Receive, limit_bytes: int) -> bytes:
    """All chunks of a body. Raises ProtocolError 413 past the limit, ClientGone."""
    message = await receive()
    if message["type"] == "http.disconnect":
        raise ClientGone
    body: bytes = message.get("body", b"")
    if not message.get("more_body", False):
        if len(body) > limit_bytes:
            raise too_large(f"the body has {len(body)} bytes", f"at most {limit_bytes}")
        return body
    chunks, size = [body], len(body)
    while message.get("more_body", False):
        message = await receive()
        if message["type"] == "http.disconnect":
            raise ClientGone
        if chunk := message.get("body", b""):
            chunks.append(chunk)
            size += len(chunk)
        if size > limit_bytes:
            raise too_large(f"the body has more than {limit_bytes} bytes", f"at most {limit_bytes}")
        if len(chunks) > CHUNKS_MAX:
            raise too_large(f"the body comes in more than {CHUNKS_MAX} chunks", f"at most {CHUNKS_MAX}")
    return b"".join(chunks)


class LimitedBody:
    """A body on its way to `pages`, within the same limits as one below /v2.

    FastAPI answers 400 to whatever goes wrong while it reads, so that the answer is put right on its way back.
    """

    def __init__(self, receive: Receive, limits: Limits, declared: bytes | None) -> None:
        self.refused: MantaError | None = None
        self._receive = receive
        self._limits = limits
        self._size = 0
        self._complete = False
        self._deadline_s = time.monotonic() + limits.body_timeout_s
        if declared is not None and (not declared.isdigit() or int(declared) > limits.body_bytes):
            self._refuse_length(declared[:20].decode("latin-1"))

    async def receive(self) -> Message:
        """The application's `receive`. Raises ProtocolError past a limit."""
        if self._complete:
            return await self._receive()
        try:
            async with asyncio.timeout(self._deadline_s - time.monotonic()):
                message = await self._receive()
        except TimeoutError:
            self.refused = bad_request("the body did not arrive in time", status=408)
            raise self.refused from None
        self._size += len(message.get("body", b""))
        self._complete = not message.get("more_body", False)
        if self._size > self._limits.body_bytes:
            raise self._refuse_length(f"more than {self._limits.body_bytes}")
        return message

    def guarded(self, send: Send) -> Send:
        """The application's `send`: once the body is refused, that is the answer."""
        told = False

        async def wrapped(message: Message) -> None:
            nonlocal told
            if self.refused is None:
                await send(message)
            elif not told:
                told = True
                await respond(send, error_answer(self.refused))

        return wrapped

    def _refuse_length(self, found: str) -> MantaError:
        self.refused = too_large(f"the body has {found} bytes", f"at most {self._limits.body_bytes}")
        return self.refused


def with_request_id(scope: Scope, send: Send) -> Send:
    """`send` whose response has the request's X-Request-ID, once; as it is where there is none."""
    request_id = _header(scope["headers"], REQUEST_ID)
    if request_id is None:
        return send

    async def wrapped(message: Message) -> None:
        if message["type"] == "http.response.start":
            others = [pair for pair in message.get("headers", ()) if pair[0].lower() != REQUEST_ID]
            message = {**message, "headers": [*others, (REQUEST_ID, request_id)]}
        await send(message)

    return wrapped


async def respond(send: Send, answer: Answer) -> None:
    """Send an answer as two ASGI messages."""
    headers = [*answer.headers, (b"content-length", str(len(answer.body)).encode())]
    await send({"type": "http.response.start", "status": answer.status, "headers": headers})
    await send({"type": "http.response.body", "body": answer.body})


class _Watch:
    """Cancels the current task when its client leaves, from `start` on."""

    def __init__(self, receive: Receive) -> None:
        self.left = False
        self._receive = receive
        self._owner = asyncio.current_task()
        self._task: asyncio.Task[None] | None = None

    def stop(self) -> None:
        if self._task is not None:
            self._task.cancel()

    def start(self) -> None:
        self._task = asyncio.get_running_loop().create_task(self._wait())

    async def _wait(self) -> None:
        message = await self._receive()
        if message["type"] == "http.disconnect" and self._owner is not None:
            self.left = True
            self._owner.cancel()


async def _lifespan(receive: Receive, send: Send) -> None:
    while True:
        message = await receive()
        await send({"type": f"{message['type']}.complete"})
        if message["type"] == "lifespan.shutdown":
            return


def _local_path(scope: Scope) -> str:
    """The path below the endpoint's prefix. A path that only begins with the same letters is not below it."""
    path: str = scope["path"]
    prefix: str = scope.get("root_path", "")
    if not prefix:
        return path
    rest = path[len(prefix) :] if path.startswith(prefix) else path
    return rest if rest.startswith("/") else f"/{rest}" if not rest else "/?"


def _call(headers: list[tuple[bytes, bytes]]) -> InferCall:
    length, content, accept = None, "", ""
    for name, value in headers:
        if name == b"inference-header-content-length":
            length = value.decode("latin-1")
        elif name == b"content-encoding":
            content = value.decode("latin-1")
        elif name == b"accept-encoding":
            accept = value.decode("latin-1")
    return InferCall(length, content, accept)


def _text(headers: list[tuple[bytes, bytes]], wanted: bytes) -> str:
    return (_header(headers, wanted) or b"").decode("latin-1")


def _header(headers: list[tuple[bytes, bytes]], wanted: bytes) -> bytes | None:
    for name, value in headers:
        if name == wanted:
            return value
    return None
