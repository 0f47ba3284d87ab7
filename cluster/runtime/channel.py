"""The way of a worker's records to the run's `events.jsonl`, from any node, without stopping the worker.

`ray.train.report` lets through about one report in two seconds and is a barrier over all workers (Ray 2.60), so
metrics take this channel: a worker sends a record to an actor beside the driver and goes on; the actor appends.

Invariant: `emit` never waits for the actor; records of one worker keep their order (Ray keeps the order of calls
from one caller to one actor); `close` returns after every record sent before it is on disk.

Covered: one run, any number of workers. Not covered: a driver whose node dies (the run is resumed by a new one).
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import ray
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from cluster.telemetry.events import Record, append_line, encode

FLUSH_TIMEOUT_S = 30.0


class ActorSink:
    """A picklable sink that sends records to the appending actor."""

    def __init__(self, actor: Any) -> None:
        self._actor = actor

    def emit(self, event: Record) -> None:
        self._actor.append.remote(encode(event))


class _Appender:
    """Appends lines on the driver's node."""

    def __init__(self, path: str) -> None:
        self._path = Path(path)

    def append(self, line: str) -> None:
        append_line(self._path, line)

    def flush(self) -> None:
        """Answers after all lines that came before: an actor handles calls in order."""


@contextmanager
def worker_channel(events: Path) -> Iterator[ActorSink]:
    """Yield a sink that workers on any node may use; on exit all records are on disk and the actor is gone.

    Needs a running Ray session. Called by the driver.
    """
    actor: Any = beside_the_driver(_Appender).remote(str(events.resolve()))
    try:
        yield ActorSink(actor)
    finally:
        if ray.is_initialized():
            # an actor that died with its node has lost its records; the run's result does not hang on them
            with suppress(ray.exceptions.RayError, TimeoutError):
                ray.get(actor.flush.remote(), timeout=FLUSH_TIMEOUT_S)
            ray.kill(actor)


def beside_the_driver(cls: type) -> Any:
    """`cls` as an actor class whose actors live on this process's node and need no free CPU."""
    here = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)
    return ray.remote(cls).options(num_cpus=0, scheduling_strategy=here)
