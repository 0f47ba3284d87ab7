"""Who works on a run: an advisory lock on a file, which the kernel drops when the holder dies, however it dies."""

from __future__ import annotations

import fcntl
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

POLL_S = 0.2


@contextmanager
def hold_lock(path: Path) -> Iterator[bool]:
    """Yield whether the lock was free; hold it until the end if it was. Does not block."""
    with path.open("a") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            yield False
            return
        yield True


def is_locked(path: Path) -> bool:
    """Whether a live process holds the lock."""
    if not path.exists():
        return False
    with hold_lock(path) as free:
        return not free


def wait_until_free(path: Path, wait_s: float) -> bool:
    """Whether no live process holds the lock, at once or within `wait_s`. Blocks."""
    deadline = time.monotonic() + wait_s
    while is_locked(path):
        if time.monotonic() >= deadline:
            return False
        time.sleep(POLL_S)
    return True
