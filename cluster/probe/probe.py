"""What a host is and has, as facts: the `Probe` protocol and what it reads.

Invariant: a value that could not be read is None and `reasons` says why; it is never 0. GPUs are keyed by UUID,
because their index changes over reboots and between NVML and CUDA.

Covered: one host. Not covered: decisions (cluster/spec/resolve.py), many hosts (cluster/probe/totals.py).
"""

from __future__ import annotations

from typing import Protocol

from cluster.spec.base import StrictSpec


class GpuReading(StrictSpec):
    """One GPU, or one slice of a GPU in MIG mode."""

    uuid: str
    name: str | None = None
    memory_total_bytes: int | None = None
    memory_free_bytes: int | None = None
    """What the driver would give now; another process may take it the next moment."""
    memory_used_bytes: int | None = None
    compute_capability: tuple[int, int] | None = None
    utilization_percent: int | None = None
    temperature_celsius: int | None = None
    power_watts: float | None = None
    ecc_uncorrected: int | None = None
    parent_uuid: str | None = None
    """The whole GPU of a MIG slice."""
    processes: tuple[int, ...] | None = None
    """Process ids as the host counts them: inside a container they are other processes' ids."""
    reasons: dict[str, str] = {}
    """Field -> why it is None."""


class HostReading(StrictSpec):
    """One host: this process's share of it where a container limits it."""

    hostname: str
    cpu_cores: int
    """Cores that this process may use: affinity and the container's quota applied."""
    memory_total_bytes: int | None = None
    memory_available_bytes: int | None = None
    shared_memory_total_bytes: int | None = None
    shared_memory_free_bytes: int | None = None
    disk_free_bytes: int | None = None
    load_1min: float | None = None
    driver_version: str | None = None
    cuda_driver_version: str | None = None
    gpus: tuple[GpuReading, ...] | None = None
    """Empty: there is none. None: it could not be found out."""
    reasons: dict[str, str] = {}
    """Field -> why it is None; `gpus` also says why there is none."""


class Probe(Protocol):
    """Reads one host. Never raises: what cannot be read is None with a reason. Does not change the host."""

    def read(self) -> HostReading: ...
