"""The batcher: requests that wait become one engine call, and each answers for itself.

An engine call starts when the engine is free and either `max_rows` are waiting or the oldest request has waited
`max_wait_s`. While the engine works, requests gather: under load batches fill without waiting, and the engine's
thread takes the next batch itself, so that it never waits for the event loop to answer the last one. Requests are
joined only with others of the same shapes (rows aside), most urgent priority first, then by age. A request of more than
`max_rows` is cut into parts (serve/batching/parts.py).

Invariants:
* a request that was accepted gets exactly one outcome: its rows, an error of its own, or its cancellation;
* isolation: when a joined call raises, its requests are run again one by one, so that only the bad one fails;
* an engine's answer is used only when it has each output, the right number of rows and finite numbers;
* nothing of the engine runs on the event loop; what waits is bounded in rows and bytes;
* `_lock` guards the queues and their counts; timers and futures belong to the event loop.

Covered: rows and bytes a batch, wait, preferred sizes, shapes, priorities, deadlines, cancellation, drain.
Not covered: choosing `max_rows` and `max_wait_s` (serve/batching/tuning.py), tokens (serve/access.py).
"""

from __future__ import annotations

import asyncio
import itertools
import threading
import time
from collections import OrderedDict, deque
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from cluster.bundle.signature import TensorSignature
from cluster.errors import InferenceError, MantaError
from serve.batching.joining import join
from serve.protocol.errors import overloaded
from serve.protocol.limits import Limits
from serve.protocol.statistics import ModelStatistics
from serve.protocol.tensors import is_finite

Arrays = dict[str, np.ndarray]
Group = tuple[Any, ...]
PRIORITY_DEFAULT = 4  # of the levels 1 (most urgent) to 8; Triton has no fixed number of levels
PRIORITY_LEVELS = 8
REMEMBERED = 0.8  # of the engine calls so far, in the mean time of a row, at each further call
SWITCH_INTERVAL_S = 0.0002
"""For `sys.setswitchinterval` of a serving process: with Python's 5 ms an engine's thread that comes back with its
answers waits as long for the event loop as a small model computes."""


@dataclass(frozen=True)
class BatchPolicy:
    """How requests are joined."""

    max_rows: int = 64
    max_wait_s: float = 0.001
    max_bytes: int = 64 << 20
    """Input bytes of one engine call."""
    preferred_rows: tuple[int, ...] = ()
    """Sizes that the engine likes (TensorRT profiles): a batch is cut down to the largest that it fills."""
    workers: int = 1
    """Engine calls at the same time; each has a thread."""
    join: bool = True
    """False where rows change one another's answers: each request is an engine call of its own, at once."""


@dataclass(eq=False)
class Waiting:
    """One request in the queue."""

    inputs: Mapping[str, np.ndarray]
    rows: int
    num_bytes: int
    priority: int
    future: asyncio.Future[Arrays]
    queued_ns: int = field(default_factory=time.perf_counter_ns)
    entered_s: float = field(default_factory=time.monotonic)
    expiry: asyncio.TimerHandle | None = None
    """Drops it at its deadline, also while the engine is busy."""
    is_part: bool = False
    """Of a larger request, which is counted as a whole by its owner."""
    started_ns: int = 0
    """When its engine call began."""

    @property
    def group(self) -> tuple[int, Group]:
        """Which queue it belongs to: requests of one priority that may be joined."""
        return (self.priority, tuple((name, array.shape[1:]) for name, array in sorted(self.inputs.items())))


Run = Callable[[Arrays], Mapping[str, np.ndarray]]


class Batcher:
    """Joins requests for one engine. Belongs to one event loop; every public method but `close` runs on it."""

    def __init__(
        self, run: Run, signature: TensorSignature, policy: BatchPolicy, limits: Limits, statistics: ModelStatistics
    ) -> None:
        self._run = run
        self._outputs = signature.outputs
        self.policy = policy
        self._limits = limits
        self._statistics = statistics
        self._lock = threading.Lock()
        self._queues: OrderedDict[tuple[int, Group], deque[Waiting]] = OrderedDict()
        self._executor = ThreadPoolExecutor(policy.workers, thread_name_prefix="engine")
        self._free = policy.workers
        self._timer: asyncio.TimerHandle | None = None
        self._idle = asyncio.Event()
        self._idle.set()
        self._closing = False
        self._recent_s = 0.0
        self._recent_rows = 1.0
        self.queued_rows = 0
        self.queued_bytes = 0
        self.running = 0

    async def submit(self, inputs: Mapping[str, np.ndarray], *, priority: int = 0, timeout_us: int = 0) -> Arrays:
        """Rows of the outputs for these inputs. Raises OverloadedError, InferenceError."""
        rows = len(next(iter(inputs.values())))
        num_bytes = sum(array.nbytes for array in inputs.values())
        self.check_room(rows, num_bytes)
        level = min(priority, PRIORITY_LEVELS) or PRIORITY_DEFAULT
        item = Waiting(inputs, rows, num_bytes, level, asyncio.get_running_loop().create_future())
        self._idle.clear()
        group = self.enter(item, timeout_us / 1e6, rows, num_bytes)
        try:
            return await item.future
        except asyncio.CancelledError:
            self._forget(group, item)
            raise

    def reserve(self, rows: int, num_bytes: int) -> None:
        """Count what waits, or (negative) what will not come after all."""
        with self._lock:
            self.queued_rows += rows
            self.queued_bytes += num_bytes
        self._idle.clear()

    def enter(self, item: Waiting, timeout_s: float = 0.0, new_rows: int = 0, new_bytes: int = 0) -> tuple[int, Group]:
        """Into the queue of its group, which is returned. `new_rows`, `new_bytes`: what of it is not counted yet."""
        group = item.group
        with self._lock:
            self._queues.setdefault(group, deque()).append(item)
            self.queued_rows += new_rows
            self.queued_bytes += new_bytes
        if timeout_s:
            item.expiry = asyncio.get_running_loop().call_later(timeout_s, self._expire, group, item)
        self.wake()
        return group

    def check_room(self, rows: int, num_bytes: int) -> None:
        """Refuse when the queue is full or the batcher is closing. Raises OverloadedError."""
        if self._closing:
            raise overloaded("this version is being unloaded", reason="draining", retry_after_s=1)
        limits = self._limits
        if self.queued_rows + rows > limits.queue_rows or self.queued_bytes + num_bytes > limits.queue_bytes:
            self._statistics.refused("queue_full")
            raise overloaded(
                f"exceeds maximum queue size: {self.queued_rows} rows wait, at most {limits.queue_rows} may",
                reason="queue_full",
                retry_after_s=limits.retry_after_s,
            )
        if limits.queue_wait_s is not None and self.expected_wait_s > limits.queue_wait_s:
            self._statistics.refused("queue_full")
            raise overloaded(
                f"exceeds maximum queue wait: {self.queued_rows} rows wait and need {self.expected_wait_s:.3g} s, "
                f"at most {limits.queue_wait_s:g} s may be waited",
                reason="queue_full",
                retry_after_s=limits.retry_after_s,
            )

    @property
    def expected_wait_s(self) -> float:
        """How long what waits now will keep the engine busy; 0 before its first call."""
        return self.queued_rows * self._recent_s / self._recent_rows / self.policy.workers

    @property
    def oldest_wait_s(self) -> float:
        """How long the oldest request has waited; 0 with an empty queue."""
        with self._lock:
            heads = [queue[0].entered_s for queue in self._queues.values() if queue]
        return time.monotonic() - min(heads) if heads else 0.0

    async def drain(self) -> None:
        """Take no more, and return when everything accepted has its outcome."""
        self._closing = True
        self.wake()
        await self._idle.wait()

    def close(self) -> None:
        """End the threads. Call after `drain`."""
        self._closing = True
        self._executor.shutdown(wait=False, cancel_futures=True)

    def wake(self) -> None:
        """Start what may start now, else set the timer to when it may."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        while self._free:
            items, due_s = self._next()
            if not items:
                if due_s is not None:
                    self._timer = asyncio.get_running_loop().call_later(due_s, self.wake)
                break
            self._start(items)
        if self.queued_rows == 0 and self.running == 0 and not self._queues:
            self._idle.set()

    def _start(self, items: list[Waiting]) -> None:
        self._free -= 1
        self.running += 1
        loop = asyncio.get_running_loop()
        work = loop.run_in_executor(self._executor, self._work, loop, items)
        work.add_done_callback(lambda done: self._worked(items, done))

    def _work(self, loop: asyncio.AbstractEventLoop, items: list[Waiting]) -> None:
        """An engine's thread: this batch, and the next ones for as long as some are due."""
        while items:
            outcome = self._execute(items)
            following, _ = self._next()
            loop.call_soon_threadsafe(self._finish, items, outcome)
            items = following

    def _worked(self, items: list[Waiting], done: asyncio.Future[None]) -> None:
        """The thread is free again. `items` have their outcome unless the engine was closed before it began."""
        self._free += 1
        self.running -= 1
        if done.cancelled():
            closed = overloaded("the engine was closed", reason="draining", retry_after_s=1)
            self._finish(items, [closed] * len(items))
        elif error := done.exception():
            raise error  # to the event loop's handler: the code above does not raise
        self.wake()

    def _next(self) -> tuple[list[Waiting], float | None]:
        """Take the most urgent batch that is due; else none, and the seconds until one is (None: nothing waits)."""
        with self._lock:
            now = time.monotonic()
            best: tuple[int, Group] | None = None
            best_key: tuple[int, float] | None = None
            wait_s: float | None = None
            for group, queue in self._queues.items():
                waiting_rows = sum(item.rows for item in itertools.islice(queue, self.policy.max_rows))
                remaining = queue[0].entered_s + self.policy.max_wait_s - now
                if self._closing or not self.policy.join or waiting_rows >= self.policy.max_rows or remaining <= 0:
                    key = (group[0], queue[0].entered_s)
                    if best_key is None or key < best_key:
                        best, best_key = group, key
                else:
                    wait_s = remaining if wait_s is None else min(wait_s, remaining)
            return ([], wait_s) if best is None else (self._take(best), None)

    def _take(self, group: tuple[int, Group]) -> list[Waiting]:
        """Remove the next batch of a group from the queue."""
        queue, policy = self._queues[group], self.policy
        items: list[Waiting] = [queue.popleft()]
        rows, num_bytes = items[0].rows, items[0].num_bytes
        while (
            policy.join
            and queue
            and rows + queue[0].rows <= policy.max_rows
            and num_bytes + queue[0].num_bytes <= policy.max_bytes
        ):
            items.append(queue.popleft())
            rows += items[-1].rows
            num_bytes += items[-1].num_bytes
        wanted = max((size for size in policy.preferred_rows if size <= rows), default=0)
        while wanted and rows > wanted and len(items) > 1 and rows - items[-1].rows >= wanted:
            item = items.pop()
            rows -= item.rows
            num_bytes -= item.num_bytes
            queue.appendleft(item)
        if not queue:
            del self._queues[group]
        self.queued_rows -= rows
        self.queued_bytes -= num_bytes
        return items

    def _execute(self, items: list[Waiting]) -> list[Arrays | MantaError]:
        """Runs in an engine thread: one call for all, and one by one when that raises."""
        start_ns = time.perf_counter_ns()
        for item in items:
            item.started_ns = start_ns
        outcome: list[Arrays | MantaError]
        try:
            inputs = join([item.inputs for item in items])
            ready_ns = time.perf_counter_ns()
            outputs = self._run(inputs)
            done_ns = time.perf_counter_ns()
            outcome = self._split(outputs, items)
        except MantaError as error:
            outcome = [error] if len(items) == 1 else self._one_by_one(items)
        except Exception as error:  # noqa: BLE001 - request edge: whatever an engine raises becomes an answer
            outcome = [_wrapped(error)] if len(items) == 1 else self._one_by_one(items)
        else:
            rows = sum(item.rows for item in items)
            self._recent_s = self._recent_s * REMEMBERED + (done_ns - ready_ns) / 1e9
            self._recent_rows = self._recent_rows * REMEMBERED + rows
            self._statistics.executed(rows, ready_ns - start_ns, done_ns - ready_ns, time.perf_counter_ns() - done_ns)
        for item, result in zip(items, outcome, strict=True):
            if not item.is_part:
                self._statistics.answered(item.rows, start_ns - item.queued_ns, item.queued_ns, result)
        return outcome

    def _one_by_one(self, items: list[Waiting]) -> list[Arrays | MantaError]:
        outcome: list[Arrays | MantaError] = []
        for item in items:
            start_ns = time.perf_counter_ns()
            try:
                outputs = self._run(dict(item.inputs))
                done_ns = time.perf_counter_ns()
                outcome += self._split(outputs, [item])
                self._statistics.executed(item.rows, 0, done_ns - start_ns, time.perf_counter_ns() - done_ns)
            except MantaError as error:
                outcome.append(error)
            except Exception as error:  # noqa: BLE001 - request edge: whatever an engine raises becomes an answer
                outcome.append(_wrapped(error))
        return outcome

    def _split(self, outputs: Mapping[str, np.ndarray], items: list[Waiting]) -> list[Arrays | MantaError]:
        """Each request's rows, or InferenceError where they are not usable."""
        rows = sum(item.rows for item in items)
        for tensor in self._outputs:
            array = outputs.get(tensor.name)
            if array is None or array.ndim == 0 or len(array) != rows:
                found = "no such output" if array is None else f"{array.shape[0] if array.ndim else 'no'} rows"
                raise _unusable(f"output {tensor.name!r} has {found} for {rows} rows of input")
        finite = {
            tensor.name: array.dtype.kind != "f" or is_finite(array)
            for tensor in self._outputs
            for array in (outputs[tensor.name],)
        }
        outcome: list[Arrays | MantaError] = []
        start = 0
        for item in items:
            part = {tensor.name: outputs[tensor.name][start : start + item.rows] for tensor in self._outputs}
            start += item.rows
            bad = [name for name, array in part.items() if not finite[name] and not np.isfinite(array).all()]
            outcome.append(_unusable(f"output {bad[0]!r} holds NaN or infinity") if bad else part)
        return outcome

    def _finish(self, items: list[Waiting], outcome: list[Arrays | MantaError]) -> None:
        for item, result in zip(items, outcome, strict=True):
            if item.expiry is not None:
                item.expiry.cancel()
            if item.future.done():
                continue
            if isinstance(result, MantaError):
                item.future.set_exception(result)
            else:
                item.future.set_result(result)

    def _forget(self, group: tuple[int, Group], item: Waiting) -> None:
        """Take a canceled request out of the queue, if it still waits there."""
        if self.leave(group, item):
            self._statistics.refused("canceled")
            self.wake()

    def _expire(self, group: tuple[int, Group], item: Waiting) -> None:
        """Drop a request whose deadline has passed in the queue."""
        if not item.future.done() and self.leave(group, item):
            if not item.is_part:
                self._statistics.refused("deadline")
            item.future.set_exception(
                overloaded("request timeout expired in the queue", reason="deadline", retry_after_s=1)
            )
            self.wake()

    def leave(self, group: tuple[int, Group], item: Waiting) -> bool:
        """Out of the queue, and whether it was still in it."""
        with self._lock:
            queue = self._queues.get(group)
            if queue is None or item not in queue:
                return False
            queue.remove(item)
            self.queued_rows -= item.rows
            self.queued_bytes -= item.num_bytes
            if not queue:
                del self._queues[group]
            return True


def _wrapped(error: BaseException) -> MantaError:
    if isinstance(error, MantaError):
        return error
    return InferenceError("Cannot run the model", found=f"{type(error).__name__}: {str(error)[:500]}")


def _unusable(found: str) -> InferenceError:
    return InferenceError(
        "Cannot use the model's answer", found=found, rule="each row of input has one finite row of each output"
    )
