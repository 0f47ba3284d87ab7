"""A request of more rows than an engine call takes: cut into parts, which wait like the requests of others.

Invariants: a part enters the queue when an earlier one has its answer, so that others are answered between the parts;
the whole counts as waiting from its start, and once in the statistics; rows keep their order; the first part that fails
ends the request.
"""

from __future__ import annotations

import asyncio
import time
from collections import deque
from collections.abc import Mapping

import numpy as np

from cluster.errors import MantaError, OverloadedError
from serve.batching.batcher import PRIORITY_DEFAULT, PRIORITY_LEVELS, Arrays, Batcher, Waiting
from serve.protocol.statistics import ModelStatistics


async def submit_in_parts(
    batcher: Batcher,
    statistics: ModelStatistics,
    inputs: Mapping[str, np.ndarray],
    *,
    priority: int = 0,
    timeout_us: int = 0,
) -> Arrays:
    """`Batcher.submit` for any number of rows. Raises OverloadedError, InferenceError."""
    rows, num_bytes = len(next(iter(inputs.values()))), sum(array.nbytes for array in inputs.values())
    batcher.check_room(rows, num_bytes)
    request = _InParts(batcher, inputs, rows, num_bytes, min(priority, PRIORITY_LEVELS) or PRIORITY_DEFAULT)
    batcher.reserve(rows, num_bytes)
    try:
        found: Arrays | MantaError = await request.run(timeout_us / 1e6)
    except asyncio.CancelledError:
        statistics.refused("canceled")
        raise
    except OverloadedError as error:
        if error.details.get("reason") == "deadline":
            statistics.refused("deadline")
        raise
    except MantaError as error:
        found = error
    finally:
        request.end()
    statistics.answered(rows, request.queue_ns, request.queued_ns, found)
    if isinstance(found, MantaError):
        raise found
    return found


class _InParts:
    """One such request on its way."""

    def __init__(
        self, batcher: Batcher, inputs: Mapping[str, np.ndarray], rows: int, num_bytes: int, priority: int
    ) -> None:
        self._batcher, self._inputs, self._priority = batcher, inputs, priority
        self._rows = rows
        self._left_rows, self._left_bytes = rows, num_bytes
        self._waiting: deque[Waiting] = deque()
        self.queued_ns = time.perf_counter_ns()
        self.queue_ns = 0

    async def run(self, timeout_s: float) -> Arrays:
        """All rows of the outputs."""
        deadline_s = time.monotonic() + timeout_s if timeout_s else None
        most, found = self._batcher.policy.max_rows, []
        for start in range(0, self._rows, most):
            while len(self._waiting) > self._batcher.policy.workers:
                found.append(await self._next())
            self._enter(start, start + most, deadline_s)
        while self._waiting:
            found.append(await self._next())
        return {name: np.concatenate([part[name] for part in found]) for name in found[0]}

    def end(self) -> None:
        """Take out of the queue what has not been run."""
        for item in self._waiting:
            self._batcher.leave(item.group, item)
            item.future.cancel()
        self._batcher.reserve(-self._left_rows, -self._left_bytes)
        self._batcher.wake()

    async def _next(self) -> Arrays:
        item = self._waiting[0]
        answer = await item.future
        self._waiting.popleft()
        self.queue_ns = self.queue_ns or item.started_ns - self.queued_ns
        return answer

    def _enter(self, start: int, stop: int, deadline_s: float | None) -> None:
        part = {name: array[start:stop] for name, array in self._inputs.items()}
        rows, num_bytes = len(next(iter(part.values()))), sum(array.nbytes for array in part.values())
        timeout_s = 0.0 if deadline_s is None else max(deadline_s - time.monotonic(), 1e-6)
        future = asyncio.get_running_loop().create_future()
        item = Waiting(part, rows, num_bytes, self._priority, future, is_part=True)
        self._left_rows -= rows
        self._left_bytes -= num_bytes
        self._waiting.append(item)
        self._batcher.enter(item, timeout_s)
