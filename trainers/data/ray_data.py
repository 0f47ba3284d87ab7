"""Ray Data as the executor of passes over a table, on every node of a cluster.

Invariant: as of every executor (executors.py). Pieces are read by path: nodes need the same files.

Covered: the quality report's scan, preparing. Not covered: reading a user's Ray Dataset (read/table_files.py).
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Any, TypeVar

import ray
import ray.data

from cluster.errors import MantaError
from trainers.data.executors import Executor

Item = TypeVar("Item")
Result = TypeVar("Result")


@contextmanager
def standing_ray() -> Iterator[None]:
    """The session that stands, else RAY_ADDRESS's, else a private one that ends with the block."""
    from cluster.runtime.session import ray_session

    if ray.is_initialized():
        yield
        return
    with ray_session():
        yield


def map_in_order(function: Callable[..., Result], items: Iterable[Item], *arguments: Any) -> Iterator[Result]:
    """`function(item, *arguments)` of every item, on Ray Data's workers, yielded in the items' order.

    Raises the error of ours that the function raised there.
    """
    items = tuple(items)
    shared = ray.put((items, arguments))

    def apply(row: dict[str, Any]) -> dict[str, Any]:
        given, more = ray.get(shared)
        try:
            return {"result": function(given[row["at"]], *more)}
        except MantaError as error:  # an answer like others: Ray Data wraps what is raised beyond recognition
            return {"result": error}

    rows = [{"at": at} for at in range(len(items))]
    with _quiet():
        dataset = ray.data.from_items(rows, override_num_blocks=max(1, len(rows)))
        dataset.context.execution_options.preserve_order = True
        dataset.context.enable_progress_bars = False
        for row in dataset.map(apply).iter_rows():
            if isinstance(row["result"], MantaError):
                raise row["result"]
            yield row["result"]


@contextmanager
def _quiet() -> Iterator[None]:
    """Ray Data announces each plan on the terminal."""
    log = logging.getLogger("ray.data")
    before = log.level
    log.setLevel(logging.ERROR)
    try:
        yield
    finally:
        log.setLevel(before)


RAY_DATA = Executor("Ray Data", map_in_order, local=False)
