"""This user's folders in the temporary directory: scratch that ends with its process, and places that processes share.

Invariant: a scratch folder is locked (flock, which the kernel drops however a process dies) by those who use it; one
whose lock is free belongs to nobody alive, and goes when the next one is made. A folder without a lock is not touched.

Covered: this host and user. Not covered: other libraries' caches that are meant to stay (compiled kernels).
"""

from __future__ import annotations

import fcntl
import os
import shutil
import stat
import tempfile
from collections.abc import Iterable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import IO

from cluster.errors import RequestError

PREFIX = "manta-"
OWNER = ".owner"
SHARED_VARIABLE = "MANTA_SHARED_TMPDIR"
"""`SHARED:PRIVATE`: where `shared_folder` is while TMPDIR is PRIVATE, a folder that ends with a private Ray."""


@contextmanager
def scratch_folder(purpose: str = "", base: str | None = None) -> Iterator[Path]:
    """A new folder of mode 0700 under `base` (else the temporary directory), removed at the end.

    What killed processes left there is removed first.
    """
    remove_abandoned(base)
    name = f"{PREFIX}{purpose}-" if purpose else PREFIX
    folder = Path(tempfile.mkdtemp(prefix=name, dir=base))
    with lock_folder(folder):
        try:
            yield folder
        finally:
            shutil.rmtree(folder, ignore_errors=True)


@contextmanager
def lock_folder(folder: Path) -> Iterator[None]:
    """Mark a new folder as in use until the end."""
    hidden = folder / f"{OWNER}.new"
    with hidden.open("wb") as lock:
        fcntl.flock(lock, fcntl.LOCK_SH)
        hidden.rename(folder / OWNER)  # locked before it has its name: nobody meets it free
        yield


@contextmanager
def inherited_locks(folders: Iterable[Path]) -> Iterator[list[int]]:
    """File descriptors, each a lock of a scratch folder: a child that inherits them keeps the folders while it lives.

    Folders that are no scratch folders have none.
    """
    with ExitStack() as stack:
        locks: list[IO[bytes]] = []
        for folder in folders:
            with suppress(FileNotFoundError):
                locks.append(stack.enter_context((folder / OWNER).open("rb")))
        for lock in locks:
            fcntl.flock(lock, fcntl.LOCK_SH)
        yield [lock.fileno() for lock in locks]


def remove_abandoned(base: str | None = None) -> list[Path]:
    """Remove this user's scratch folders that no live process has locked; returns them."""
    gone = []
    for folder in sorted(Path(base or tempfile.gettempdir()).glob(f"{PREFIX}*")):
        if _is_abandoned(folder):
            shutil.rmtree(folder, ignore_errors=True)
            gone.append(folder)
    return gone


def shared_folder(name: str) -> Path:
    """This user's folder of a name, of mode 0700, the same for all processes of a host. Raises RequestError."""
    path = shared_base() / f"{PREFIX}{name}-{os.getuid()}"
    path.mkdir(mode=0o700, exist_ok=True, parents=True)
    found = path.lstat()
    if found.st_uid != os.getuid() or stat.S_IMODE(found.st_mode) & 0o077 or not stat.S_ISDIR(found.st_mode):
        raise RequestError(
            f"Cannot use {path}",
            found="it is not a folder of this user's alone",
            rule="others could read tokens there, or put files of theirs in",
            remedy="Remove it, or set TMPDIR to a folder of yours.",
        )
    return path


def shared_base() -> Path:
    """The temporary directory outside any private Ray."""
    shared, _, private = os.environ.get(SHARED_VARIABLE, "").partition(os.pathsep)
    return Path(shared if shared and os.environ.get("TMPDIR") == private else tempfile.gettempdir())


def _is_abandoned(folder: Path) -> bool:
    with suppress(OSError):  # another user's, or gone in this moment
        if folder.is_symlink() or folder.lstat().st_uid != os.getuid():
            return False
        with (folder / OWNER).open("rb") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return True
    return False
