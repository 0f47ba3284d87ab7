"""A probe of a host that is made up."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from cluster.probe import GpuReading, HostReading


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
