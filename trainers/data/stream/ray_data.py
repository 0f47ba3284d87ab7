"""The seam to Ray Data: the same passes over a source's pieces, on every node of a cluster.

Invariant: what a piece gives does not depend on where it was read, and parts are merged in the pieces' order, so that
the result is the one that threads of a single process give. Pieces are read by path: nodes need the same files.

Covered: the quality report's pass, writing shards. Not covered: reading a user's Ray Dataset (read/table_files.py).
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, TypeVar

import ray
import ray.data

from cluster.errors import MantaError
from trainers.data.quality.part import Ask, Part
from trainers.data.quality.stream import summarize
from trainers.data.read.batches import Piece

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


@contextmanager
def ray_for_report() -> Iterator[Callable[[list[Piece], Ask], Part]]:
    """Yield what makes a part of pieces on Ray."""
    with standing_ray():
        yield run_on_ray


def run_on_ray(pieces: list[Piece], ask: Ask) -> Part:
    """The part of all pieces, each read by a worker. Raises DataError as the reader raised it."""
    whole = Part()
    for part in map_in_order(summarize, pieces, ask):
        whole.merge(part)
    return whole


def map_in_order(function: Callable[..., Result], items: Sequence[Item], *arguments: Any) -> Iterator[Result]:
    """`function(item, *arguments)` of every item, on Ray Data's workers, yielded in the items' order.

    Raises the error of ours that the function raised there.
    """
    shared = ray.put((tuple(items), arguments))

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
