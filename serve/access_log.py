"""The access log: one JSON line for a share of the requests, with what an operator needs and nothing of what was said.

Invariant: no body, no query, no header and no token is ever logged; a request that is not in the sample costs one
random number. A line that cannot be written (a full disk) is dropped, and the request is answered all the same.

Covered: every HTTP request of an endpoint. Not covered: gRPC (its outcomes are in the metrics).
"""

from __future__ import annotations

import logging
import random
import time
from collections.abc import Callable
from typing import Any, TextIO

import orjson

from serve.asgi import App, Message, Receive, Scope, Send

LOG = logging.getLogger("serve.access")
PATH_CHARACTERS_MAX = 200
GONE = 499  # as nginx counts a client that left before its answer


class AccessLog:
    """ASGI middleware around an endpoint's door. `share` gives the sampled part now, so that a change takes effect."""

    def __init__(self, app: App, share: Callable[[], float], endpoint: str, replica: str = "0") -> None:
        self._app = app
        self._share = share
        self._names = {"endpoint": endpoint, "replica": replica}

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        share = self._share()
        if not share or scope["type"] != "http" or random.random() >= share:
            await self._app(scope, receive, send)
            return
        await self._logged(scope, receive, send)

    async def _logged(self, scope: Scope, receive: Receive, send: Send) -> None:
        started_ns = time.perf_counter_ns()
        seen = {"status": GONE, "request_bytes": 0, "response_bytes": 0}

        async def counted_receive() -> Message:
            message = await receive()
            seen["request_bytes"] += len(message.get("body", b""))
            return message

        async def counted_send(message: Message) -> None:
            if message["type"] == "http.response.start":
                seen["status"] = message["status"]
            seen["response_bytes"] += len(message.get("body", b""))
            await send(message)

        try:
            await self._app(scope, counted_receive, counted_send)
        finally:
            self._write(scope, seen, (time.perf_counter_ns() - started_ns) / 1e6)

    def _write(self, scope: Scope, seen: dict[str, int], duration_ms: float) -> None:
        client = scope.get("client") or ("", 0)
        line: dict[str, Any] = {
            "unix_s": round(time.time(), 3),
            **self._names,
            "client": client[0],
            "method": scope["method"][:20],
            "path": scope["path"][:PATH_CHARACTERS_MAX],
            **seen,
            "duration_ms": round(duration_ms, 3),
        }
        LOG.info("%s", orjson.dumps(line).decode())


def open_access_log(target: logging.Handler | TextIO) -> None:
    """Send the lines to a stream or a handler and nowhere else. Called once a process, by its main."""
    handler = target if isinstance(target, logging.Handler) else logging.StreamHandler(target)
    handler.setFormatter(logging.Formatter("%(message)s"))
    handler.handleError = _drop  # type: ignore[method-assign]
    for old in list(LOG.handlers):
        LOG.removeHandler(old)
    LOG.addHandler(handler)
    LOG.setLevel(logging.INFO)
    LOG.propagate = False


def _drop(record: logging.LogRecord) -> None:
    """logging prints a traceback for every line that it cannot write; a full disk would make that a flood."""
