"""Load at a fixed rate, whatever the server does: each request has its time, and its latency counts from there.

A closed loop waits for slow answers and so asks less just when it matters (coordinated omission); this one does not.
It speaks just enough HTTP/1.1 for keep-alive POSTs, because a full client would take the cores from the server.
"""

from __future__ import annotations

import asyncio
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from urllib.parse import urlsplit

import numpy as np

Connection = tuple[asyncio.StreamReader, asyncio.StreamWriter]
LOST = 0  # in place of a status: the connection broke before an answer


@dataclass
class Answers:
    """One entry a request, in the order of their answers."""

    due_s: list[float] = field(default_factory=list)
    """When the request was to be sent, since the start of the load."""
    latency_s: list[float] = field(default_factory=list)
    """From then to the answer's last byte."""
    status: list[int] = field(default_factory=list)
    unsent: int = 0
    """Requests for which no connection was free: the client's limit, not the server's."""
    bodies: list[bytes] = field(default_factory=list)
    """Of the first few answers that were not 200."""

    def rate_per_s(self, status: int, since_s: float, until_s: float) -> float:
        """Answers with a status a second, by due time."""
        due, found = np.array(self.due_s), np.array(self.status)
        return float(np.sum((found == status) & (due >= since_s) & (due < until_s)) / (until_s - since_s))

    def percentile_ms(self, status: int, percent: float, since_s: float = 0.0) -> float:
        """Latency of the answers with a status."""
        chosen = (np.array(self.status) == status) & (np.array(self.due_s) >= since_s)
        return float(np.percentile(np.array(self.latency_s)[chosen], percent)) * 1e3 if chosen.any() else float("nan")

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
        self._request = "\r\n".join(lines).encode() + b"\r\n\r\n" + body
        self._room = connections
        self._idle: deque[Connection] = deque()
        self.answers = Answers()

    async def run(self, rate_per_s: float, seconds: float, stop: Callable[[], bool] = lambda: False) -> Answers:
        """Send for `seconds`, or until `stop` says so, and wait for the answers."""
        tasks: set[asyncio.Task[None]] = set()
        self._start_s = time.perf_counter()
        index = 0
        while (now_s := time.perf_counter() - self._start_s) < seconds and not stop():
            while (due_s := index / rate_per_s) <= now_s:
                index += 1
                if self._idle:
                    connection = self._idle.pop()
                elif self._room:
                    connection, self._room = None, self._room - 1
                else:
                    self.answers.unsent += 1
                    continue
                task = asyncio.create_task(self._ask(due_s, connection))
                tasks.add(task)
                task.add_done_callback(tasks.discard)
            await asyncio.sleep(max(0.0, index / rate_per_s - (time.perf_counter() - self._start_s)))
        if tasks:
            await asyncio.wait(tasks, timeout=60)
        for _, writer in self._idle:
            writer.close()
        return self.answers

    async def _ask(self, due_s: float, connection: Connection | None) -> None:
        status, body = LOST, b""
        try:
            if connection is None:
                connection = await asyncio.open_connection(self._host, self._port)
            reader, writer = connection
            writer.write(self._request)
            head = (await reader.readuntil(b"\r\n\r\n")).lower()
            length = int(head.split(b"\r\ncontent-length:", 1)[1].split(b"\r\n", 1)[0])
            body = await reader.readexactly(length)
            status = int(head[9:12])
            if b"\r\nconnection: close" in head:
                raise ConnectionResetError
            self._idle.append(connection)
        except (OSError, asyncio.IncompleteReadError, IndexError):
            self._room += 1
            if connection is not None:
                connection[1].close()
        answers = self.answers
        answers.due_s.append(due_s)
        answers.latency_s.append(time.perf_counter() - self._start_s - due_s)
        answers.status.append(status)
        if status != 200 and len(answers.bodies) < 5:
            answers.bodies.append(body[:300])
