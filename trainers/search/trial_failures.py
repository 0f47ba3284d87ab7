"""Processes of trials that died, as Ray Tune 2.60 must hear of them.

Tune takes a RayActorError for a dead actor and a RayTaskError for an error that a task raised. Any other ends the whole
experiment with a RuntimeError, and every restart of it at the same trial: OutOfMemoryError above all, with which Ray's
memory monitor reports that it has killed the process.

Invariant: inside `translated_failures` a process that has gone is a failed trial, whatever Ray calls its death.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from ray.exceptions import OutOfMemoryError, RayActorError, RayError, RayTaskError

from cluster.runtime.ray_private import Tell, tune_failures_through

MEMORY_WORDS = "low on memory"  # in every message of the memory monitor (src/ray/raylet/node_manager.cc)
MEMORY_NOTE = "Ray's memory monitor killed its process, twice: the host was short of memory"
_DEATHS: list[BaseException] = []
"""Errors that Tune is handling, innermost last: it passes a failure to its searcher without the reason."""


@contextmanager
def translated_failures() -> Iterator[None]:
    """Hand every failure to Tune as one of those that it knows. Driver only; one experiment at a time."""
    with tune_failures_through(_tell_as_known):
        yield


def _tell_as_known(tell: Tell, error: BaseException) -> None:
    _DEATHS.append(error)
    try:
        is_known = not isinstance(error, RayError) or isinstance(error, RayActorError | RayTaskError)
        tell(error if is_known else RayActorError(error_msg=str(error)))
    finally:
        _DEATHS.pop()


def killed_for_memory() -> bool:
    """Whether the failure that Tune is handling is the memory monitor's doing."""
    return any(isinstance(death, OutOfMemoryError) or MEMORY_WORDS in str(death) for death in _DEATHS)
