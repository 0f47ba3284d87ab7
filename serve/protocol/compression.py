"""gzip and deflate bodies, with a bound on what they may become.

Invariant: never holds more than `limit` + one chunk of decompressed bytes, whatever the body claims (zip bombs).
`deflate` is the zlib container (RFC 9110, 8.4.1.2).
"""

from __future__ import annotations

import gzip
import zlib

from serve.protocol.errors import bad_request, too_large

WINDOW_OF = {"gzip": 16 + zlib.MAX_WBITS, "deflate": zlib.MAX_WBITS}
LEVEL = 1  # tensors compress little; the fastest level costs the least of what it gains
IDENTITY = ("", "identity")


def decompress(body: bytes, encoding: str, limit_bytes: int) -> bytes:
    """The body without its Content-Encoding. Raises ProtocolError (400, 413 past the limit, 415 unknown)."""
    encoding = encoding.strip().lower()
    if encoding in IDENTITY:
        return body
    if encoding not in WINDOW_OF:
        raise bad_request(f"Content-Encoding is {encoding[:40]!r}", rule="gzip or deflate", status=415)
    worker = zlib.decompressobj(WINDOW_OF[encoding])
    try:
        found = worker.decompress(body, limit_bytes + 1)
    except zlib.error as error:
        raise bad_request(f"the body is not {encoding}: {error}") from None
    if len(found) > limit_bytes:
        raise too_large("the body grows past the limit when decompressed", f"at most {limit_bytes} bytes")
    if not worker.eof:
        raise bad_request(f"the {encoding} body ends too early")
    if worker.unused_data:
        raise bad_request(f"{len(worker.unused_data)} bytes follow the {encoding} body")
    return found


def accepted_encoding(accept: str) -> str:
    """The encoding of ours that an Accept-Encoding header prefers; empty for none."""
    best, best_quality = "", 0.0
    for entry in accept.lower().split(","):
        name, _, parameters = entry.strip().partition(";")
        quality = _quality(parameters)
        if name.strip() in WINDOW_OF and quality > best_quality:
            best, best_quality = name.strip(), quality
    return best


def compress(body: bytes, encoding: str) -> bytes:
    """The body in one of our encodings; unchanged for the empty name."""
    if encoding == "gzip":
        return gzip.compress(body, LEVEL, mtime=0)
    return zlib.compress(body, LEVEL) if encoding == "deflate" else body


def _quality(parameters: str) -> float:
    text = parameters.strip().removeprefix("q=")
    try:
        return float(text) if text else 1.0
    except ValueError:
        return 0.0
