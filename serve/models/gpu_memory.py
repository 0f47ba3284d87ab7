"""Room on a GPU for a model: read from NVML before anything is loaded, answered with numbers.

Invariant: a load is refused before it takes memory, never after it has evicted something; a GPU whose memory cannot
be read is not judged (the load itself will tell).

Covered: one model on one GPU of this host; a picture of a host's GPUs that travels. Not covered: which host
(serve/deployments/placement.py), fragmentation inside a process (each GPU model has its own).
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass

import psutil

from cluster.errors import MemoryShortError
from cluster.probe.gpus import GpuSource, NvmlSource
from cluster.probe.probe import GpuReading

# The driver's context, cuDNN and cuBLAS handles of a process: 0.3 to 0.5 GiB on current GPUs
CONTEXT_BYTES = 512 << 20
GIB = 1 << 30


@dataclass(frozen=True)
class GpuRoom:
    """One GPU with the names of those who hold its memory, as its own host sees them."""

    uuid: str
    name: str
    total_bytes: int | None
    free_bytes: int | None
    holders: str


def read_rooms() -> tuple[GpuRoom, ...]:
    """The GPUs of this host. Small and picklable by name: a cluster calls it on every node."""
    return tuple(
        GpuRoom(gpu.uuid, gpu.name or gpu.uuid, *_credible(gpu), describe_holders(gpu))
        for gpu in NvmlSource().read().gpus or ()
    )


def check_gpu_memory(device: str, footprint_bytes: int | None, source: GpuSource) -> None:
    """Raise MemoryShortError when `device` (`cuda:N`) cannot hold the model's measured footprint."""
    gpu = find_gpu(device, source)
    if gpu is None or footprint_bytes is None:
        return
    total_bytes, free_bytes = _credible(gpu)
    needed = footprint_bytes + CONTEXT_BYTES
    if free_bytes is None or needed <= free_bytes:
        return
    total = f" of {total_bytes / GIB:.2f}" if total_bytes else ""
    holders = describe_holders(gpu)
    raise MemoryShortError(
        f"Cannot load a model on {device} ({gpu.name or gpu.uuid})",
        found=f"{free_bytes / GIB:.2f}{total} GiB are free; held by {holders}",
        rule=f"it needs {footprint_bytes / GIB:.2f} GiB at its largest batch and {CONTEXT_BYTES / GIB:.2f} GiB for "
        "the driver",
        remedy="Unload another model, lower serve.batching.max_rows, or choose another GPU.",
        details={"needed_bytes": needed, "free_bytes": free_bytes, "gpu": gpu.uuid},
    )


def find_gpu(device: str, source: GpuSource) -> GpuReading | None:
    """The reading of `cuda:N` as this process counts GPUs, or None where it cannot be read."""
    kind, _, number = device.partition(":")
    if kind != "cuda":
        return None
    gpus = visible_gpus(source.read().gpus or (), os.environ.get("CUDA_VISIBLE_DEVICES"))
    index = int(number or 0)
    return gpus[index] if index < len(gpus) else None


def visible_gpus(gpus: Sequence[GpuReading], visible: str | None) -> list[GpuReading | None]:
    """The GPUs in CUDA's order for this process: NVML lists all, CUDA those of CUDA_VISIBLE_DEVICES.

    Entries are indices or the beginning of a UUID; an entry that names no GPU hides all after it (CUDA's rule).
    """
    if visible is None:
        return list(gpus)
    found: list[GpuReading | None] = []
    for entry in (word.strip() for word in visible.split(",") if word.strip()):
        if entry.isdigit():
            chosen = gpus[int(entry)] if int(entry) < len(gpus) else None
        else:
            chosen = next((gpu for gpu in gpus if gpu.uuid.startswith(entry)), None)
        if chosen is None:
            break
        found.append(chosen)
    return found


def _credible(gpu: GpuReading) -> tuple[int | None, int | None]:
    """Total and free bytes; a free value that cannot be true (negative, above the total) is as good as none."""
    total, free = gpu.memory_total_bytes or None, gpu.memory_free_bytes
    if free is not None and (free < 0 or (total is not None and free > total)):
        free = None
    return total, free


def describe_holders(gpu: GpuReading) -> str:
    """`name (pid n)` of the processes on a GPU, as far as this process may see them."""
    if gpu.processes is None:
        return f"processes that cannot be seen ({gpu.reasons.get('processes', 'no reason given')})"
    return ", ".join(map(_holder, gpu.processes)) or "no process that can be seen"


def _holder(pid: int) -> str:
    try:
        return f"{psutil.Process(pid).name()} (pid {pid})"
    except psutil.Error:
        return f"pid {pid}"
