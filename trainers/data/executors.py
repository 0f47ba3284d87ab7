"""What runs a pass over a table: one process, threads, or Ray Data (ray_data.py).

Invariant: an executor yields the results in the order of the items and changes none of them, so that the result of a
pass does not depend on the executor; an error of the function is raised as the function raised it.
"""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

WORKERS_MAX = 4  # each holds a few batches


@dataclass(frozen=True)
class Executor:
    """A way to run one function on many items."""

    name: str
    map: Callable[..., Iterator[Any]]
    """`map(function, items, *arguments)` yields `function(item, *arguments)` of each item, in order."""
    local: bool = True
    """Whether it works in this process: items are then taken one after the other as workers become free, and may be
    rows in memory."""


def _map_here(function: Callable[..., Any], items: Iterable[Any], *arguments: Any) -> Iterator[Any]:
    for item in items:
        yield function(item, *arguments)


def _map_in_threads(function: Callable[..., Any], items: Iterable[Any], *arguments: Any) -> Iterator[Any]:
    workers = max(1, min(WORKERS_MAX, len(os.sched_getaffinity(0))))
    with ThreadPoolExecutor(workers, thread_name_prefix="data") as pool:
        waiting: deque[Future[Any]] = deque()
        try:
            for item in items:
                waiting.append(pool.submit(function, item, *arguments))
                if len(waiting) > workers:
                    yield waiting.popleft().result()
            while waiting:
                yield waiting.popleft().result()
        finally:
            for future in waiting:
                future.cancel()


ONE_PROCESS = Executor("one process", _map_here)
THREADS = Executor("threads", _map_in_threads)
