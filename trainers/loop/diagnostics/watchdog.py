"""A worker that hangs: which one, and where.

After an exchange has timed out, the workers that wait set a key in the group's store, and one that requests stacks; a
worker without its key is the missing one. A thread in each worker answers with all its stacks, also while its main
thread hangs.

Invariant: nothing here is on the way of an update; without a time-out it costs one read of the store every
POLL_S seconds.

Covered: hangs in Python and in calls that release the GIL. Not covered: a process that is stopped or gone (it has no
stack to show; it is named all the same).
"""

from __future__ import annotations

import sys
import threading
import time
import traceback

import torch.distributed as dist

from trainers.loop.distributed.world import World

POLL_S = 1.0
ANSWER_S = 5.0  # the others notice the time-out at about the same time, and a thread answers within POLL_S
REQUEST = "manta/stacks-wanted"


class Watchdog:
    """One worker's answering thread."""

    def __init__(self, world: World) -> None:
        self.world = world
        self._end = threading.Event()
        self._thread: threading.Thread | None = None
        if world.size > 1:
            self._store = dist.distributed_c10d._get_default_store()
            self._thread = threading.Thread(target=self._answer, name="watchdog", daemon=True)
            self._thread.start()

    def close(self) -> None:
        """End the thread. Call it before the process group is destroyed."""
        self._end.set()
        if self._thread is not None:
            self._thread.join(POLL_S * 5)

    def who_is_missing(self) -> tuple[list[int], dict[int, str]]:
        """Ranks that do not wait, and every answering rank's stacks. Blocks for at most ANSWER_S. Called after a
        time-out by each worker that waited."""
        others = range(self.world.size)
        self._store.set(_waiting(self.world.rank), "1")
        self._store.set(REQUEST, "1")
        until = time.monotonic() + ANSWER_S
        while time.monotonic() < until and not all(self._has(_stacks(rank)) for rank in others):
            self._end.wait(POLL_S / 5)
        missing = [rank for rank in others if not self._has(_waiting(rank))]
        found = {rank: self._store.get(_stacks(rank)).decode() for rank in others if self._has(_stacks(rank))}
        return missing, found

    def _has(self, key: str) -> bool:
        return bool(self._store.check([key]))

    def _answer(self) -> None:
        while not self._end.wait(POLL_S):
            try:
                if self._has(REQUEST):
                    self._store.set(_stacks(self.world.rank), stacks_of_all_threads())
                    return
            except RuntimeError:  # the store is gone: so is the group
                return


def stacks_of_all_threads() -> str:
    """What each Python thread of this process is doing."""
    names = {thread.ident: thread.name for thread in threading.enumerate()}
    parts = []
    for ident, frame in sys._current_frames().items():
        if names.get(ident) != "watchdog":
            parts.append(f"thread {names.get(ident, ident)}:\n" + "".join(traceback.format_stack(frame)))
    return "\n".join(parts)


def _waiting(rank: int) -> str:
    return f"manta/waiting/{rank}"


def _stacks(rank: int) -> str:
    return f"manta/stacks/{rank}"
