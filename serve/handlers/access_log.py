"""The access log: one JSON line for a share of the requests, with what an operator needs and nothing of what was said.

Invariant: no body, no query and no token is ever logged, and of the headers two that exist for logs: `X-Request-ID` and
`X-Forwarded-For`, whose entries but the last are what the client says. A request that is not in the sample costs one
random number. A line that cannot be written (a full disk) is dropped, and the request is answered all the same.

Covered: every HTTP request (serve/doors/asgi.py) and gRPC call (serve/doors/rpc.py) of an endpoint; a stream is one
line.
"""

from __future__ import annotations

import logging
import random
import time
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import asdict, dataclass
from typing import Any, TextIO

import orjson

LOG = logging.getLogger("serve.access")
PATH_CHARACTERS_MAX = 200


@dataclass
class Seen:
    """What one request came to. `status` is HTTP's number or gRPC's code name."""

    status: int | str
    request_bytes: int = 0
    response_bytes: int = 0
    version: str = ""
    """That answered; empty where none did."""
    request_id: str = ""
    forwarded_for: str = ""
    """The chain of clients; the last one is who reached the proxy whose address is the line's `client`."""


SEEN: ContextVar[Seen | None] = ContextVar("seen", default=None)
"""Of the request at hand, where it is logged."""


class AccessLog:
    """The lines of one replica of an endpoint."""

    def __init__(self, endpoint: str, replica: str = "0", share: float = 0.0) -> None:
        self._names = {"endpoint": endpoint, "replica": replica}
        self.share = share
        """Part of the requests that is logged, 0 to 1."""

    def sampled(self) -> bool:
        """Whether this request is to be logged."""
        return self.share > 0 and random.random() < self.share

    @contextmanager
    def line(self, client: str, method: str, path: str, seen: Seen) -> Iterator[None]:
        """Time what happens inside, then write the line, whatever came of it."""
        started_ns = time.perf_counter_ns()
        token = SEEN.set(seen)
        try:
            yield
        finally:
            SEEN.reset(token)
            line: dict[str, Any] = {
                "unix_s": round(time.time(), 3),
                **self._names,
                "client": client,
                "method": method[:20],
                "path": path[:PATH_CHARACTERS_MAX],
                **{name: value for name, value in asdict(seen).items() if value != ""},
                "duration_ms": round((time.perf_counter_ns() - started_ns) / 1e6, 3),
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
