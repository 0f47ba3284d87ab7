"""CPU, memory, shared memory and disk of this host, by psutil and the container's cgroup limits.

Invariant: a container's limits win over the host's totals: a worker that plans with the host's memory is killed.

Covered: Linux, cgroup v1 and v2. Not covered: GPUs (gpus.py).
"""

from __future__ import annotations

import math
import os
import shutil
import socket
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from cluster.probe.gpus import GpuSource, NvmlSource
from cluster.probe.probe import HostReading

CGROUP = Path("/sys/fs/cgroup")
SHARED_MEMORY = Path("/dev/shm")
UNLIMITED_BYTES_V1 = 1 << 60  # cgroup v1 writes a number near 2^63 for "no limit"


@dataclass(frozen=True)
class HostProbe:
    """Reads the host that it runs on."""

    gpus: GpuSource = field(default_factory=NvmlSource)
    disk: Path = Path()
    """The disk that holds this folder."""

    def read(self) -> HostReading:
        reasons: dict[str, str] = {}
        gpus = self.gpus.read()
        reasons |= gpus.reasons
        return HostReading(
            hostname=socket.gethostname(),
            cpu_cores=cpu_cores(),
            memory_total_bytes=_try("memory_total_bytes", memory_total_bytes, reasons),
            memory_available_bytes=_try("memory_available_bytes", memory_available_bytes, reasons),
            shared_memory_total_bytes=_try("shared_memory_total_bytes", lambda: _disk(SHARED_MEMORY).total, reasons),
            shared_memory_free_bytes=_try("shared_memory_free_bytes", lambda: _disk(SHARED_MEMORY).free, reasons),
            disk_free_bytes=_try("disk_free_bytes", lambda: _disk(self.disk.resolve()).free, reasons),
            load_1min=_try("load_1min", lambda: os.getloadavg()[0], reasons),
            driver_version=gpus.driver_version,
            cuda_driver_version=gpus.cuda_driver_version,
            gpus=gpus.gpus,
            reasons=reasons,
        )


def cpu_cores(cgroup: Path = CGROUP) -> int:
    """Cores that this process may use: its affinity, bounded by the container's CPU quota, at least 1."""
    cores = len(os.sched_getaffinity(0))
    quota = _cpu_quota(cgroup)
    return max(1, min(cores, math.ceil(quota))) if quota else cores


def memory_total_bytes(cgroup: Path = CGROUP) -> int:
    """The host's memory, bounded by the container's limit."""
    limit = _memory_limit(cgroup)
    import psutil

    total = psutil.virtual_memory().total
    return min(total, limit) if limit else total


def memory_available_bytes(cgroup: Path = CGROUP) -> int:
    """What can be had without swapping: the host's, bounded by what the container has left."""
    import psutil

    available = psutil.virtual_memory().available
    limit, used = _memory_limit(cgroup), _memory_used(cgroup)
    return min(available, max(0, limit - used)) if limit and used is not None else available


def _cpu_quota(cgroup: Path) -> float | None:
    if text := _read(cgroup / "cpu.max"):
        quota, period = text.split()
        return None if quota == "max" else int(quota) / int(period)
    text, period_text = _read(cgroup / "cpu/cpu.cfs_quota_us"), _read(cgroup / "cpu/cpu.cfs_period_us")
    if text and period_text and int(text) > 0:
        return int(text) / int(period_text)
    return None


def _memory_limit(cgroup: Path) -> int | None:
    text = _read(cgroup / "memory.max") or _read(cgroup / "memory/memory.limit_in_bytes")
    if not text or text == "max" or int(text) >= UNLIMITED_BYTES_V1:
        return None
    return int(text)


def _memory_used(cgroup: Path) -> int | None:
    text = _read(cgroup / "memory.current") or _read(cgroup / "memory/memory.usage_in_bytes")
    return int(text) if text else None


def _read(path: Path) -> str | None:
    try:
        return path.read_text(encoding="ascii").strip()
    except OSError:
        return None


def _disk(path: Path) -> Any:
    return shutil.disk_usage(path)


def _try(name: str, read: Callable[[], Any], reasons: dict[str, str]) -> Any:
    """The value, or None with the reason noted."""
    try:
        return read()
    except (OSError, ValueError, ImportError) as error:
        reasons[name] = f"{type(error).__name__}: {error}"
        return None
