"""Errors of the request path as short constructors, and their HTTP status and gRPC code in one table.

Sources: the status table of Triton's HTTP server (KServe agrees for 400, 404 and 501); RFC 9110 for 413, 415, 422.
"""

from __future__ import annotations

import math
from typing import Any

from cluster.errors import (
    BundleError,
    DataError,
    InferenceError,
    MantaError,
    MemoryShortError,
    OverloadedError,
    ProtocolError,
)

INTERNAL_ERROR = "internal error; the server's log has the traceback"
GRPC_OF_STATUS: dict[int, str] = {
    400: "INVALID_ARGUMENT",
    401: "UNAUTHENTICATED",
    403: "PERMISSION_DENIED",
    404: "NOT_FOUND",
    405: "UNIMPLEMENTED",
    408: "DEADLINE_EXCEEDED",
    409: "ALREADY_EXISTS",
    413: "RESOURCE_EXHAUSTED",
    415: "INVALID_ARGUMENT",
    429: "RESOURCE_EXHAUSTED",
    499: "CANCELLED",
    500: "INTERNAL",
    501: "UNIMPLEMENTED",
    503: "UNAVAILABLE",
    504: "DEADLINE_EXCEEDED",
}
STATUS_MEANINGS: dict[int, str] = {
    400: "the request is wrong: its JSON, a tensor's type, shape or length, a value that is not finite, a raw row",
    401: "no valid token: none was sent, or none that allows this call",
    403: "load or unload, and the endpoint has no `admin_token_file`",
    404: "no such path, model or version",
    405: "another verb; `Allow` names the right one",
    408: "the head or the body did not arrive in time",
    413: "a body, a tensor, an image or the files of a form are past a limit",
    415: "a content encoding other than gzip and deflate, a file that is no image, or one at `/predict`",
    431: "the head is too long",
    499: "the client left before its answer; in the access log alone",
    500: "the model failed, or its answer is incomplete or not finite",
    501: "not served: shared memory, sequences, trace and log settings, a load with parameters",
    503: "not now: queue or connections are full, memory is short, or not ready; `Retry-After` where waiting helps",
}
"""Of the reference page (docs/generate.py): when a status is answered."""
STATUS_OF_CLASS: tuple[tuple[type[MantaError], int], ...] = (
    (ProtocolError, 400),
    (DataError, 400),
    (BundleError, 400),
    (OverloadedError, 503),
    (MemoryShortError, 503),
    (InferenceError, 500),
)


def status_of(error: MantaError) -> int:
    """HTTP status of an error that leaves the endpoint."""
    if "status" in error.details:
        return int(error.details["status"])
    return next((status for cls, status in STATUS_OF_CLASS if isinstance(error, cls)), 500)


def grpc_code_of(error: MantaError) -> str:
    """Name of the `grpc.StatusCode` of an error that leaves the endpoint."""
    if error.details.get("reason") == "queue_full":
        return "RESOURCE_EXHAUSTED"
    return GRPC_OF_STATUS.get(status_of(error), "INTERNAL")


def bad_request(found: str, *, rule: str = "", status: int = 400, remedy: str = "") -> ProtocolError:
    """A request that breaks the protocol."""
    details: dict[str, Any] = {"status": status}
    return ProtocolError("Cannot answer the request", found=found, rule=rule, remedy=remedy, details=details)


def not_found(found: str, *, remedy: str = "") -> ProtocolError:
    """404: a model, version or path that is not here."""
    return bad_request(found, status=404, remedy=remedy)


def too_large(found: str, rule: str) -> ProtocolError:
    """413: a body or tensor past a limit."""
    return bad_request(found, status=413, rule=rule, remedy="Send fewer rows in one request.")


def overloaded(found: str, *, reason: str, retry_after_s: float) -> OverloadedError:
    """503: refused for now. `reason` is `queue_full`, `deadline`, `not_ready` or `draining`."""
    return OverloadedError(
        "Cannot take the request",
        found=found,
        remedy=f"Try again after {math.ceil(retry_after_s)} s.",
        details={"reason": reason, "retry_after_s": retry_after_s},
    )
