"""Is /dev/shm large enough for a private Ray's object store?

Ray 2.60 falls back to a file on disk without stopping when it is not (ray/_private/services.py), and everything that
passes through its object store becomes slow for no visible reason: so the size is fitted to what is free, and where
not even Ray's minimum fits, that is an error before anything has started.

Invariant: the returned size is at least Ray's minimum and leaves a share of /dev/shm for data loaders.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

from cluster.errors import MemoryShortError

SHARED_MEMORY = Path("/dev/shm")
OBJECT_STORE_BYTES_MIN = 75 * 1024 * 1024  # ray/_private/ray_constants.py: OBJECT_STORE_MINIMUM_MEMORY_BYTES
OBJECT_STORE_BYTES_GOAL = 1 << 30  # pages are taken when used; a run passes file names through it, not data
OBJECT_STORE_SHARE_MAX = 0.8  # the rest is for torch's data loaders and the HTTP proxy


def shared_memory_free_bytes(path: Path = SHARED_MEMORY) -> int | None:
    """Free bytes of /dev/shm, or None where there is no such file system."""
    try:
        found = os.statvfs(path)
    except OSError:
        return None
    return found.f_bavail * found.f_frsize


def object_store_bytes(free: Callable[[], int | None] = shared_memory_free_bytes) -> int:
    """Size of a private Ray's object store. Raises MemoryShortError when /dev/shm cannot hold Ray's minimum."""
    free_bytes = free()
    if free_bytes is None:
        return OBJECT_STORE_BYTES_MIN  # no /dev/shm on this system: Ray uses its temporary folder, by design
    fitting = min(OBJECT_STORE_BYTES_GOAL, int(free_bytes * OBJECT_STORE_SHARE_MAX))
    if fitting >= OBJECT_STORE_BYTES_MIN:
        return fitting
    need = int(OBJECT_STORE_BYTES_MIN / OBJECT_STORE_SHARE_MAX)
    raise MemoryShortError(
        "Cannot start a private Ray",
        found=f"{SHARED_MEMORY} has {free_bytes / 2**20:.0f} MiB free",
        rule=f"Ray's object store needs at least {need / 2**20:.0f} MiB there",
        remedy=f"In Docker give the container more with --shm-size=1g (compose: shm_size), elsewhere enlarge it with "
        f"'mount -o remount,size=1g {SHARED_MEMORY}' or remove files in it; or use a cluster with --address.",
        details={"free_bytes": free_bytes, "needed_bytes": need, "path": str(SHARED_MEMORY)},
    )
