"""Write all or nothing, and know what was written: temporary name, fsync, rename, sha256.

Invariant: after any of these functions returns or raises, the target is either the old content or the new
content, never a mix; a crash leaves at most a `*.partial` beside it, which the next write removes.

Covered: files, JSON, folders, hashes, "disk full" as an error of ours. Not covered: remote stores (store/remote.py).
"""

from __future__ import annotations

import errno
import hashlib
import json
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from cluster.errors import DiskFullError

PARTIAL = ".partial"
HASH_CHUNK_BYTES = 1 << 20


@contextmanager
def disk_errors(attempted: str, path: Path) -> Iterator[None]:
    """Turn "no space left" and "quota exceeded" into `DiskFullError`; everything else passes."""
    try:
        yield
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT):
            raise
        raise DiskFullError(
            attempted,
            found=f"the disk that holds {path} is full ({free_bytes(path):,} bytes free)",
            rule="what was there before is whole; the new content was not put in its place",
            remedy="Free some space and run the same command again, or choose another place with --runs-dir.",
        ) from error


def write_bytes(path: Path, data: bytes) -> None:
    """Replace `path` by `data`, atomically. Raises DiskFullError."""
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f"{path.name}.{os.getpid()}{PARTIAL}")
    try:
        with disk_errors(f"Cannot write {path}", path.parent):
            with partial.open("wb") as file:
                file.write(data)
                file.flush()
                os.fsync(file.fileno())
            partial.replace(path)
            sync_folder(path.parent)
    finally:
        partial.unlink(missing_ok=True)


def write_text(path: Path, text: str) -> None:
    """Replace `path` by UTF-8 text, atomically."""
    write_bytes(path, text.encode("utf-8"))


def write_json(path: Path, value: Any) -> None:
    """Replace `path` by indented JSON, atomically. NaN is refused: it is not JSON."""
    write_text(path, json.dumps(value, indent=2, sort_keys=True, allow_nan=False) + "\n")


@contextmanager
def new_folder(target: Path, *, keep_partial: bool = False) -> Iterator[Path]:
    """Yield a `.partial` folder; on success it takes the place of `target`, on an error `target` is untouched.

    With `keep_partial` a partial folder left by an earlier attempt is handed on, and one left by an error
    is kept, so that the work inside can be resumed.
    """
    partial = target.with_name(target.name + PARTIAL)
    if not keep_partial:
        shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True, exist_ok=True)
    try:
        with disk_errors(f"Cannot write {target}", target.parent):
            yield partial
            sync_tree(partial)
            replace_folder(partial, target)
    except BaseException:
        if not keep_partial:
            shutil.rmtree(partial, ignore_errors=True)
        raise


def replace_folder(source: Path, target: Path) -> None:
    """Put `source` in the place of `target`. The old folder is moved away first and removed last."""
    old = target.with_name(f"{target.name}.old{PARTIAL}")
    shutil.rmtree(old, ignore_errors=True)
    if target.exists():
        target.rename(old)
    source.rename(target)
    sync_folder(target.parent)
    shutil.rmtree(old, ignore_errors=True)


def sha256_file(path: Path) -> str:
    """Hex digest of a file's content."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while chunk := file.read(HASH_CHUNK_BYTES):
            digest.update(chunk)
    return digest.hexdigest()


def hash_tree(folder: Path, *, exclude: frozenset[str] = frozenset()) -> dict[str, str]:
    """`{relative path: sha256}` of all files under `folder`, sorted, except the names in `exclude`."""
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    names = {path: path.relative_to(folder).as_posix() for path in files}
    return {name: sha256_file(path) for path, name in names.items() if name not in exclude}


def digest_json(value: Any) -> str:
    """sha256 of a JSON-able value in canonical form: equal values have equal digests on every machine."""
    canonical = json.dumps(value, sort_keys=True, separators=(",", ":"), allow_nan=False, default=str)
    return hashlib.sha256(canonical.encode()).hexdigest()


def sync_tree(folder: Path) -> None:
    """fsync every file and folder below `folder`."""
    for path in folder.rglob("*"):
        if path.is_file():
            sync_path(path)
    sync_folder(folder)


def sync_path(path: Path) -> None:
    """fsync one file."""
    fd = os.open(path, os.O_RDONLY)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


def sync_folder(folder: Path) -> None:
    """fsync a folder, so that a rename inside it survives a power cut."""
    sync_path(folder)


def free_bytes(path: Path) -> int:
    """Free bytes of the disk that holds `path` or its nearest existing parent."""
    while not path.exists():
        path = path.parent
    return shutil.disk_usage(path).free
