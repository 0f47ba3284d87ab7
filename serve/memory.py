"""Is there room on a GPU for a model: asked of NVML before anything is loaded, answered with numbers.

Invariant: a load is refused before it takes memory, never after it has evicted something; a GPU whose memory cannot
be read is not judged (the load itself will tell).

Covered: one model on one GPU of this host. Not covered: fragmentation inside a process (each GPU model has its own).
"""

from __future__ import annotations

import psutil

from cluster.errors import MemoryShortError
from cluster.probe.gpus import GpuSource
from cluster.probe.probe import GpuReading

# The driver's context, cuDNN and cuBLAS handles of a process: 0.3 to 0.5 GiB on current GPUs
CONTEXT_BYTES = 512 << 20
GIB = 1 << 30


def check_room(device: str, footprint_bytes: int | None, source: GpuSource) -> None:
    """Raise MemoryShortError when `device` (`cuda:N`) cannot hold the model's measured footprint."""
    gpu = find_gpu(device, source)
    if gpu is None or footprint_bytes is None or gpu.memory_free_bytes is None:
        return
    needed = footprint_bytes + CONTEXT_BYTES
    if needed <= gpu.memory_free_bytes:
        return
    total = f" of {gpu.memory_total_bytes / GIB:.2f}" if gpu.memory_total_bytes else ""
    holders = describe_holders(gpu)
    raise MemoryShortError(
        f"Cannot load a model on {device} ({gpu.name or gpu.uuid})",
        found=f"{gpu.memory_free_bytes / GIB:.2f}{total} GiB are free; held by {holders}",
        rule=f"it needs {footprint_bytes / GIB:.2f} GiB at its largest batch and {CONTEXT_BYTES / GIB:.2f} GiB for "
        "the driver",
        remedy="Unload another model, lower serve.batching.max_rows, or choose another GPU.",
        details={"needed_bytes": needed, "free_bytes": gpu.memory_free_bytes, "gpu": gpu.uuid},
    )


def find_gpu(device: str, source: GpuSource) -> GpuReading | None:
    """The reading of `cuda:N` as this process counts GPUs, or None where it cannot be told."""
    kind, _, number = device.partition(":")
    gpus = source.read().gpus
    index = int(number or 0)
    return gpus[index] if kind == "cuda" and gpus and index < len(gpus) else None


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
