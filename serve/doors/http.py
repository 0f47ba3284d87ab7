"""The HTTP server of `python -m serve`: uvicorn's, with the protocol's JSON where uvicorn answers by itself.

uvicorn answers what is not HTTP (two lengths, a broken request line) as text and before any application sees it, and
reads a head of any length. Invariant: a head of more than `HEAD_BYTES_MAX` ends its connection with 431.
On Ray Serve HAProxy does both (cluster/runtime/haproxy.sh).
"""

from __future__ import annotations

from typing import Any

import orjson
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

HEAD_BYTES_MAX = 64 << 10  # Ray Serve's HAProxy takes 16 KiB; uvicorn's other parser (h11) 64 KiB


class JsonHttpProtocol(HttpToolsProtocol):
    """One connection."""

    def __init__(self, *arguments: Any, **options: Any) -> None:
        super().__init__(*arguments, **options)
        self._in_head = False
        self._head_bytes = 0

    def data_received(self, data: bytes) -> None:
        super().data_received(data)
        if self._in_head:
            self._head_bytes += len(data)
            if self._head_bytes > HEAD_BYTES_MAX and not self.transport.is_closing():
                self._end(b"431 Request Header Fields Too Large", f"the head has more than {HEAD_BYTES_MAX} bytes")

    def on_message_begin(self) -> None:
        self._in_head, self._head_bytes = True, 0
        super().on_message_begin()

    def on_headers_complete(self) -> None:
        self._in_head = False
        super().on_headers_complete()

    def send_400_response(self, msg: str) -> None:
        """Called by uvicorn for what its parser refuses."""
        self._end(b"400 Bad Request", msg)

    def _end(self, status: bytes, words: str) -> None:
        body = orjson.dumps({"error": words})
        head = b"HTTP/1.1 %b\r\ncontent-type: application/json\r\ncontent-length: %d\r\nconnection: close\r\n\r\n"
        self.transport.write(head % (status, len(body)) + body)
        self.transport.close()
