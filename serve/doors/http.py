"""One HTTP connection, as uvicorn's with what a hostile network needs: of `python -m serve`, and of Ray Serve's own
HTTP servers in proxies and replicas (serve/deployments/middleware.py). HAProxy before them does the same by its own
means (cluster/runtime/private/haproxy_config.py).

Invariants:
* while no request is at work, a whole head must come within `head_timeout_s`, counted from the connection's start or
  from the first byte after an answer. Single bytes do not extend it, whether of a head or of a body that was already
  answered;
* a head of more than `HEAD_BYTES_MAX` ends its connection with 431;
* a connection past `Limits.connections` is answered 503 at once, with Retry-After, and takes no one's place;
* what uvicorn answers by itself (two lengths, a broken request line), as text and before any application, is JSON.

Not covered: a body in time (serve/doors/asgi.py), an idle connection after an answer (uvicorn's keep-alive), gRPC.
"""

from __future__ import annotations

import asyncio
from typing import Any

import orjson
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from serve.protocol.limits import Limits

HEAD_BYTES_MAX = 64 << 10  # Ray Serve's HAProxy takes 16 KiB; uvicorn's other parser (h11) 64 KiB
LINGER_S = (
    1.0  # for a refused client to read its 503: closing on unread bytes would reset the connection (RFC 9112, 9.6)
)


class JsonHttpProtocol(HttpToolsProtocol):
    """One connection."""

    limits = Limits()

    def __init__(self, *arguments: Any, **options: Any) -> None:
        super().__init__(*arguments, **options)
        self._in_head = False
        self._head_bytes = 0
        self._refused = False
        self._deadline: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        if len(self.connections) > self.limits.connections:
            self._refuse()
        else:
            self._await_head()

    def connection_lost(self, exc: Exception | None) -> None:
        self._forget_deadline()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        if self._refused:
            return
        super().data_received(data)
        if self._in_head:
            self._head_bytes += len(data)
            if self._head_bytes > HEAD_BYTES_MAX and not self.transport.is_closing():
                self._end(b"431 Request Header Fields Too Large", f"the head has more than {HEAD_BYTES_MAX} bytes")
        if self._deadline is None and (self._in_head or self.cycle is None or self.cycle.response_complete):
            self._await_head()

    def on_message_begin(self) -> None:
        self._in_head, self._head_bytes = True, 0
        super().on_message_begin()

    def on_headers_complete(self) -> None:
        self._in_head = False
        self._forget_deadline()
        super().on_headers_complete()

    def send_400_response(self, msg: str) -> None:
        """Called by uvicorn for what its parser refuses."""
        self._end(b"400 Bad Request", msg)

    def _await_head(self) -> None:
        if not self.transport.is_closing():
            self._deadline = self.loop.call_later(self.limits.head_timeout_s, self._head_is_late)

    def _forget_deadline(self) -> None:
        if self._deadline is not None:
            self._deadline.cancel()
            self._deadline = None

    def _head_is_late(self) -> None:
        self._deadline = None
        if self._in_head:
            self._end(b"408 Request Timeout", "the head did not arrive in time")
        else:
            self.transport.close()

    def _refuse(self) -> None:
        self._refused = True
        self.connections.discard(self)
        self._write(
            b"503 Service Unavailable\r\nretry-after: %d" % self.limits.retry_after_s,
            f"the endpoint holds {self.limits.connections} connections, which is its limit; try again",
        )
        if self.transport.can_write_eof():
            self.transport.write_eof()
        self._deadline = self.loop.call_later(LINGER_S, self.transport.close)

    def _end(self, status: bytes, words: str) -> None:
        self._write(status, words)
        self.transport.close()

    def _write(self, status: bytes, words: str) -> None:
        body = orjson.dumps({"error": words})
        head = b"HTTP/1.1 %b\r\ncontent-type: application/json\r\ncontent-length: %d\r\nconnection: close\r\n\r\n"
        self.transport.write(head % (status, len(body)) + body)


def http_protocol(limits: Limits) -> type[JsonHttpProtocol]:
    """The connections of a server with these limits, for uvicorn's `http` setting."""
    return type(JsonHttpProtocol.__name__, (JsonHttpProtocol,), {"limits": limits})
