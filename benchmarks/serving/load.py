"""Load at a fixed rate, whatever the server does: each request has its time, and its latency counts from there.

A closed loop waits for slow answers and so asks less just when it matters (coordinated omission); this one does not.
It speaks just enough HTTP/1.1 for keep-alive POSTs, on uvloop and without a task a request, because what the client
uses of the cores the server lacks.
"""

from __future__ import annotations

import asyncio
import time
from array import array
from collections import deque
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from typing import cast
from urllib.parse import urlsplit

import numpy as np
import uvloop

TICK_S = 0.001  # libuv's timers know no less: a shorter sleep would spin and take a core from the server
LOST = 0  # in place of a status: the connection broke before an answer


@dataclass
class Answers:
    """One entry a request, in the order of their answers."""

    due_s: array[float] = field(default_factory=lambda: array("d"))
    """When the request was to be sent, since the start of the load."""
    latency_s: array[float] = field(default_factory=lambda: array("d"))
    """From then to the answer's last byte."""
    late_s: array[float] = field(default_factory=lambda: array("d"))
    """From then until it was really sent: the client's own wait for a core."""
    status: array[int] = field(default_factory=lambda: array("h"))
    unsent: int = 0
    """Requests for which no connection was free: the client's limit, not the server's."""
    bodies: list[bytes] = field(default_factory=list)
    """Of the first few answers that were not 200."""

    def rate_per_s(self, status: int, since_s: float, until_s: float) -> float:
        """Answers with a status a second, by due time."""
        due, found = np.array(self.due_s), np.array(self.status)
        return float(np.sum((found == status) & (due >= since_s) & (due < until_s)) / (until_s - since_s))

    def percentile_ms(self, status: int, percent: float, since_s: float = 0.0, *, sent: bool = False) -> float:
        """Latency of the answers with a status; from the time of sending, not from when it was due, with `sent`."""
        chosen = (np.array(self.status) == status) & (np.array(self.due_s) >= since_s)
        taken_s = np.array(self.latency_s) - (np.array(self.late_s) if sent else 0.0)
        return float(np.percentile(taken_s[chosen], percent)) * 1e3 if chosen.any() else float("nan")

    def counts(self, since_s: float = 0.0, until_s: float = float("inf")) -> dict[str, int]:
        """How many answers had which status; `lost` for broken connections."""
        due = np.array(self.due_s)
        values = np.array(self.status)[(due >= since_s) & (due < until_s)]
        keys, counts = np.unique(values, return_counts=True)
        return {str(key) if key else "lost": int(count) for key, count in zip(keys, counts, strict=True)}


class OpenLoad:
    """POSTs of one body to one URL at a fixed rate over at most `connections` connections."""

    def __init__(self, url: str, body: bytes, headers: dict[str, str], *, connections: int) -> None:
        parts = urlsplit(url)
        self._host, self._port = parts.hostname or "127.0.0.1", parts.port or 80
        lines = [f"POST {parts.path} HTTP/1.1", f"Host: {self._host}", f"Content-Length: {len(body)}"]
        lines += [f"{name}: {value}" for name, value in headers.items()]
        self.request = "\r\n".join(lines).encode() + b"\r\n\r\n" + body
        self._room = connections
        self._idle: deque[_Connection] = deque()
        self._opening: set[asyncio.Task[None]] = set()
        self._asked = 0
        self.answers = Answers()

    def drive(self, rate_per_s: float, seconds: float, stop: Callable[[], bool] = lambda: False) -> Answers:
        """Send for `seconds`, or until `stop` says so, and wait for the answers. Blocks; runs a loop of its own."""
        with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
            return runner.run(self._drive(rate_per_s, seconds, stop))

    async def _drive(self, rate_per_s: float, seconds: float, stop: Callable[[], bool]) -> Answers:
        self._start_s = time.perf_counter()
        index = 0
        while (now_s := self.now_s()) < seconds and not stop():
            while (due_s := index / rate_per_s) <= now_s:
                index += 1
                self._ask(due_s)
            await asyncio.sleep(max(TICK_S, index / rate_per_s - self.now_s()))
        until_s = self.now_s() + 60
        while len(self.answers.status) < self._asked and self.now_s() < until_s:
            await asyncio.sleep(0.05)
        for connection in self._idle:
            connection.transport.close()
        return self.answers

    def now_s(self) -> float:
        return time.perf_counter() - self._start_s

    def _ask(self, due_s: float) -> None:
        if not self._idle and not self._room:
            self.answers.unsent += 1
            return
        self._asked += 1
        if self._idle:
            self._idle.pop().ask(due_s)
            return
        self._room -= 1
        task = asyncio.get_running_loop().create_task(self._open(due_s))
        self._opening.add(task)
        task.add_done_callback(self._opening.discard)

    async def _open(self, due_s: float) -> None:
        loop = asyncio.get_running_loop()
        try:
            _, connection = await loop.create_connection(lambda: _Connection(self), self._host, self._port)
        except OSError:
            self._room += 1
            self.take(due_s, self.now_s(), LOST, b"")
            return
        connection.ask(due_s)

    def take(self, due_s: float, sent_s: float, status: int, body: bytes) -> None:
        """One answer, or none."""
        answers = self.answers
        answers.due_s.append(due_s)
        answers.latency_s.append(self.now_s() - due_s)
        answers.late_s.append(sent_s - due_s)
        answers.status.append(status)
        if status != 200 and len(answers.bodies) < 5:
            answers.bodies.append(body[:300])

    def free(self, connection: _Connection) -> None:
        """Its answer was read whole: the next request may have it."""
        self._idle.append(connection)

    def gone(self, connection: _Connection) -> None:
        """It was closed: there is room for another one."""
        self._room += 1
        with suppress(ValueError):
            self._idle.remove(connection)


class _Connection(asyncio.Protocol):
    """One keep-alive connection; at most one request is under way on it."""

    def __init__(self, load: OpenLoad) -> None:
        self._load = load
        self._due_s: float | None = None
        self._sent_s = 0.0
        self._read = b""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast(asyncio.WriteTransport, transport)

    def ask(self, due_s: float) -> None:
        self._due_s, self._sent_s, self._read = due_s, self._load.now_s(), b""
        self.transport.write(self._load.request)

    def data_received(self, data: bytes) -> None:
        self._read += data
        end = self._read.find(b"\r\n\r\n")
        if end < 0 or self._due_s is None:
            return
        head = self._read[:end].lower() + b"\r\n"
        length = int(head.split(b"\r\ncontent-length:", 1)[1].split(b"\r\n", 1)[0])
        body = self._read[end + 4 :]
        if len(body) < length:
            return
        due_s, self._due_s = self._due_s, None
        self._load.take(due_s, self._sent_s, int(head[9:12]), body)
        if b"\r\nconnection: close" in head:
            self.transport.close()
        else:
            self._load.free(self)

    def connection_lost(self, error: Exception | None) -> None:
        if self._due_s is not None:
            self._load.take(self._due_s, self._sent_s, LOST, b"")
        self._load.gone(self)
