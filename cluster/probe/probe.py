"""What a host is and has, as facts: the `Probe` protocol, the real one, and a fake that tests and docs use.

Invariant: a value that could not be read is None and `reasons` says why; it is never 0. GPUs are keyed by UUID,
because their index changes over reboots and between NVML and CUDA.

Covered: one host. Not covered: decisions (cluster/spec/resolve.py), many hosts (cluster/probe/facts.py).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
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


@dataclass(frozen=True)
class FakeProbe:
    """A host as told: lets everything above be tested without the hardware."""

    hostname: str = "fake"
    cpu_cores: int = 8
    memory_total_bytes: int | None = 32 << 30
    gpus: Sequence[GpuReading] | None = ()
    gpu_reason: str = "no NVIDIA driver on this host"

    def read(self) -> HostReading:
        return HostReading(
            hostname=self.hostname,
            cpu_cores=self.cpu_cores,
            memory_total_bytes=self.memory_total_bytes,
            memory_available_bytes=self.memory_total_bytes and self.memory_total_bytes // 2,
            shared_memory_total_bytes=1 << 30,
            shared_memory_free_bytes=1 << 30,
            disk_free_bytes=100 << 30,
            load_1min=0.5,
            driver_version="580.0" if self.gpus else None,
            cuda_driver_version="13.0" if self.gpus else None,
            gpus=None if self.gpus is None else tuple(self.gpus),
            reasons=self._reasons(),
        )

    def _reasons(self) -> dict[str, str]:
        if self.gpus:
            return {}
        reasons = dict.fromkeys(("gpus", "driver_version", "cuda_driver_version"), self.gpu_reason)
        if self.memory_total_bytes is None:
            reasons |= dict.fromkeys(("memory_total_bytes", "memory_available_bytes"), "/proc/meminfo is not readable")
        return reasons
