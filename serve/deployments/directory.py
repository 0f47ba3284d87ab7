"""Endpoints of this user on this host, as small files, so that one terminal finds what another one serves.

A cluster's endpoints are in its Ray Serve; a private Ray's address is known only to the process that started it.
Invariant: a record names a live process, or it is not returned and its file is removed.
"""

from __future__ import annotations

import json
import os
from dataclasses import asdict, dataclass
from pathlib import Path

import psutil

from cluster.atomic import write_json
from cluster.temporary import shared_folder


@dataclass(frozen=True)
class EndpointRecord:
    """Where a private Ray's endpoint is."""

    name: str
    url: str
    ray_address: str
    pid: int
    started_unix_s: float
    """Start of that process: a recycled process id is another process."""
    ray_token: str = ""
    """Token of its Ray: the file is this user's alone, as Ray's own token file is."""


def folder() -> Path:
    """This user's folder, made with mode 0700."""
    return shared_folder("endpoints")


def remember(name: str, url: str, ray_address: str) -> None:
    """Record an endpoint that this process keeps alive."""
    pid = os.getpid()
    token = os.environ.get("RAY_AUTH_TOKEN", "")
    record = EndpointRecord(name, url, ray_address, pid, psutil.Process(pid).create_time(), token)
    write_json(folder() / f"{name}.json", asdict(record))


def forget(name: str) -> None:
    """Remove this process's record; one that another process has put in its place stays."""
    path = folder() / f"{name}.json"
    record = _read(path)
    if record is not None and record.pid == os.getpid():
        path.unlink(missing_ok=True)


def drop(record: EndpointRecord) -> None:
    """Remove the record of an endpoint that is gone, whichever process keeps its Ray."""
    if _read(folder() / f"{record.name}.json") == record:
        (folder() / f"{record.name}.json").unlink(missing_ok=True)


def recorded_here() -> bool:
    """Whether a record names this process."""
    return any(record.pid == os.getpid() for record in records())


def records() -> list[EndpointRecord]:
    """Endpoints whose process lives."""
    found = []
    for path in sorted(folder().glob("*.json")):
        record = _read(path)
        if record is not None and _lives(record):
            found.append(record)
        else:
            path.unlink(missing_ok=True)
    return found


def _read(path: Path) -> EndpointRecord | None:
    try:
        return EndpointRecord(**json.loads(path.read_text(encoding="utf-8")))
    except (OSError, ValueError, TypeError):
        return None


def _lives(record: EndpointRecord) -> bool:
    try:
        return abs(psutil.Process(record.pid).create_time() - record.started_unix_s) < 1.0
    except psutil.Error:
        return False
