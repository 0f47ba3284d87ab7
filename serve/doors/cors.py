"""Cross-origin requests of web pages (CORS, the Fetch standard): off but for the origins of `serve.cors_origins`.

Invariant: a page of another origin gets no header that lets it read an answer, and its preflight is refused; tokens go
in the Authorization header alone, so that no answer depends on a cookie and none is allowed.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, MutableMapping, Sequence
from typing import Any

from serve.doors.rest import Answer, text_error

Message = MutableMapping[str, Any]
Send = Callable[[Message], Awaitable[None]]
Headers = Sequence[tuple[bytes, bytes]]
ANY = "*"
METHODS = b"GET, POST, OPTIONS"
EXPOSED = b"Inference-Header-Content-Length, Retry-After, X-Request-ID"
PREFLIGHT_SECONDS = b"600"  # for which a browser remembers the answer; Chromium's limit is 7200


def with_origin(headers: Headers, origins: Sequence[str], send: Send) -> Send:
    """`send` whose response may be read by the request's origin, if that is allowed."""
    origin = _allowed(headers, origins)
    if origin is None:
        return send

    async def wrapped(message: Message) -> None:
        if message["type"] == "http.response.start":
            more = [
                (b"access-control-allow-origin", origin),
                (b"access-control-expose-headers", EXPOSED),
                (b"vary", b"Origin"),
            ]
            message = {**message, "headers": [*message.get("headers", ()), *more]}
        await send(message)

    return wrapped


def preflight(method: str, headers: Headers, origins: Sequence[str]) -> Answer | None:
    """The answer to a browser's question whether it may send a request; None for any other request."""
    if method != "OPTIONS" or _value(headers, b"access-control-request-method") is None:
        return None
    if _allowed(headers, origins) is None:
        return text_error(403, "this origin may not ask; serve.cors_origins names those that may")
    wanted = _value(headers, b"access-control-request-headers") or b""
    return Answer(
        204,
        b"",
        (
            (b"access-control-allow-methods", METHODS),
            *(((b"access-control-allow-headers", wanted),) if wanted else ()),
            (b"access-control-max-age", PREFLIGHT_SECONDS),
        ),
    )


def _allowed(headers: Headers, origins: Sequence[str]) -> bytes | None:
    """The origin to name in the answer."""
    origin = _value(headers, b"origin")
    if origin is None:
        return None
    return origin if ANY in origins or origin.decode("latin-1") in origins else None


def _value(headers: Headers, wanted: bytes) -> bytes | None:
    return next((value for name, value in headers if name == wanted), None)
