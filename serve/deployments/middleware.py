"""Middleware of a replica's HTTP server: infer requests go uvicorn -> our door, without Ray Serve's own wrapping.

Ray Serve puts per-request tasks, contexts, an access record and metrics around every call of an ASGI application;
on a small model that is most of the time. Its hook for middleware (`RAY_SERVE_HTTP_PROXY_CALLBACK_IMPORT_PATH`,
set in cluster/runtime/environment.py) is outside of all that, so that infer requests go to the door at once; and what
Ray Serve answers to others by itself, as text, leaves as the protocol's JSON.

What that leaves to us, and where it is: the bound on waiting requests (serve/batching/batcher.py), metrics
(serve/observe/metrics.py), the autoscaler's signal (scaling.py), a client that leaves (serve/doors/asgi.py). What stays
Ray Serve's: when a replica stops, its HTTP server first finishes the requests that it has. Every path but infer takes
Ray Serve's way.

Without the hook (a cluster whose nodes lack the variable) everything works, only slower.
"""

from __future__ import annotations

from typing import Any

from starlette.middleware import Middleware

from serve.doors.asgi import App, Message, Receive, Scope, Send, respond, with_request_id
from serve.doors.rest import Answer, text_error
from serve.protocol.errors import INTERNAL_ERROR

RAYS_OWN = "/-/"  # health and routes, which HAProxy requests
ERROR_BYTES_MAX = 4096


class InferMiddleware:
    """Outermost ASGI middleware of a replica's HTTP server."""

    door: App | None = None
    """The door of this process; None in Ray Serve's own proxies."""
    prefix = ""

    def __init__(self, app: App) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        door = InferMiddleware.door
        if door is not None and scope["type"] == "http":
            path: str = scope["path"]
            if path.endswith("/infer") and path.startswith(InferMiddleware.prefix):
                scope["root_path"] = InferMiddleware.prefix[:-1]
                await door(scope, receive, send)
                return
        is_ours = scope["type"] == "http" and not scope["path"].startswith(RAYS_OWN)
        await self._app(scope, receive, with_request_id(scope, json_errors(send)) if is_ours else send)


def json_errors(send: Send) -> Send:
    """`send` that gives Ray Serve's own errors, which are text, the protocol's form.

    A request that took too long (408), an application that is not there (404) or has no replica (503). The words of a
    500 may hold a traceback and stay behind.
    """
    start: Message | None = None
    text = b""

    async def wrapped(message: Message) -> None:
        nonlocal start, text
        if message["type"] == "http.response.start" and message["status"] >= 400 and not _is_json(message):
            start = message
        elif start is None:
            await send(message)
        elif message["type"] == "http.response.body":
            text = (text + message.get("body", b""))[:ERROR_BYTES_MAX]
            if not message.get("more_body", False):
                await respond(send, _answer_of(start, text))

    return wrapped


def _is_json(start: Message) -> bool:
    kinds = [value for name, value in start.get("headers", ()) if name.lower() == b"content-type"]
    return any(kind.startswith(b"application/json") for kind in kinds)


def _answer_of(start: Message, text: bytes) -> Answer:
    status = int(start["status"])
    words = INTERNAL_ERROR if status == 500 else text.decode("utf-8", "replace").strip().partition("\n")[0]
    kept = tuple(
        pair for pair in start.get("headers", ()) if pair[0].lower() not in (b"content-type", b"content-length")
    )
    if status == 503 and not any(name.lower() == b"retry-after" for name, _ in kept):
        kept += ((b"retry-after", b"1"),)
    answer = text_error(status, words or f"status {status}")
    return Answer(status, answer.body, (*answer.headers, *kept))


def take_infer_requests(door: App, name: str) -> None:
    """Called once in a replica: infer requests below the endpoint's path go to `door`."""
    InferMiddleware.door, InferMiddleware.prefix = door, f"/{name}/"


def middlewares() -> list[Any]:
    """What Ray Serve's hook returns. Called in each process of Ray Serve before it makes its HTTP server.

    Ray Serve gives no other place for the server's connections: it leaves their class to uvicorn's choice, which this
    sets to ours, so that proxies without HAProxy and the replicas' own ports have the deadlines and limits too.
    """
    from uvicorn.protocols.http import auto

    from serve.doors.http import JsonHttpProtocol

    auto.AutoHTTPProtocol = JsonHttpProtocol
    return [Middleware(InferMiddleware)]
