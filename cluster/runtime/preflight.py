"""What a run will need at its end, asked at its start: optional packages, a free port, room in /dev/shm; and,
again and again, its working folder.

Invariant: a run that would fail for want of these fails within a second, before data is read or a model trained.

Covered: private runs; packages also of a run on a cluster. Not covered: a cluster's nodes (nodes/preflight.py).
"""

from __future__ import annotations

from pathlib import Path

from cluster.errors import ResourceError
from cluster.runtime.extras import check_extras
from cluster.runtime.ports import claim_port
from cluster.runtime.private.shared_memory import object_store_bytes, shared_memory_free_bytes
from cluster.spec.run import RunSpec


def check_this_host(spec: RunSpec, *, private: bool, serves: bool) -> None:
    """Raise MissingDependencyError or PortInUseError for what is known to be missing.

    `private`: the run uses no cluster; `serves`: it goes on to deploy.
    """
    check_extras(spec)
    if not private:
        return
    if serves and spec.serve is not None and spec.serve.port:
        claim_port(spec.serve.host, spec.serve.port)


def check_shared_memory() -> None:
    """Raise MemoryShortError where a private Ray would find no room for its objects."""
    object_store_bytes(shared_memory_free_bytes)


def check_working_folder() -> None:
    """Raise ResourceError where this process's working folder has been removed: relative paths lead nowhere then, and
    oneMKL, which torch uses, ends the process ("Cannot load libtorch_cpu.so")."""
    try:
        Path.cwd()
    except FileNotFoundError as error:
        link = Path("/proc/self/cwd")
        place = str(link.readlink()).removesuffix(" (deleted)") if link.is_symlink() else "the folder"
        raise ResourceError(
            "Cannot go on",
            found=f"the working folder was removed: {place}",
            rule="a job works in a copy of the shipped folder in its node's Ray folder ('ray start --temp-dir'); if "
            "two nodes share that, the second one replaces what the first one has unpacked",
            remedy="Give each node a Ray folder of its own, on its own disk, or start again from a folder that stays.",
        ) from error
