"""What a request may cost, in one frozen value that the doors, the codec and the batcher share.

Every number is a bound on memory or time that one client can take from the others.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Limits:
    """Bounds of one endpoint. `*_bytes` count the request of one client."""

    body_bytes: int = 64 << 20
    """Wire size; Triton's default (server/src/command_line_parser.cc)."""
    decompressed_bytes: int = 64 << 20
    """Size after gzip or deflate."""
    json_depth: int = 100
    """Nesting of JSON; Triton's (server/src/common.h)."""
    elements: int = 64 << 20
    """Elements of one tensor, so that a shape alone cannot ask for memory."""
    name_characters: int = 512
    """Length of a model, tensor or request name."""
    head_timeout_s: float = 10.0
    """How long a client may take to send a request's head, from its connection or from the head's first byte on."""
    connections: int = 3584
    """Open HTTP connections of a server; past it a new one is answered 503. HAProxy, for which a connection costs a
    tenth as much, holds seven eighths of its `maxconn` (RAY_SERVE_HAPROXY_MAXCONN)."""
    body_timeout_s: float = 30.0
    """How long a client may take to send its body."""
    queue_rows: int = 4096
    """Rows that may wait for the engine; past it requests are refused."""
    queue_bytes: int = 256 << 20
    """Bytes that may wait for the engine."""
    queue_wait_s: float | None = 1.0
    """Expected time in the queue, from what a row takes now; past it requests are refused. None: no such bound."""
    retry_after_s: int = 1
    """Of the `Retry-After` header of a refusal."""
