"""The GPU memory of a node as a resource of Ray's own, so that Ray itself accounts for what replicas reserve.

Ray knows GPUs by number and fraction, not by memory (ray-project/ray#26929). Each node is started with the resource
`gpu_memory_mib`: what NVML said was free on its GPUs when it started, so that memory which other programs hold is
never promised. serve/deployments/placement.py reserves a model's measured footprint of it.

Invariant: a node whose memory cannot be read offers none, never a guess. Covered: nodes that are started through
`python -m cluster.runtime.node`, and private Rays. Not covered: programs that take memory later (a replica asks NVML
again before it loads).
"""

from __future__ import annotations

from cluster.probe.gpus import GpuSource, NvmlSource

GPU_MEMORY = "gpu_memory_mib"
MIB = 1 << 20


def node_resources(source: GpuSource | None = None) -> dict[str, float]:
    """`{"gpu_memory_mib": …}` for this host; empty where there is no GPU whose free memory can be read."""
    free = [gpu.memory_free_bytes for gpu in (source or NvmlSource()).read().gpus or ()]
    free_mib = sum(int(value) // MIB for value in free if value is not None and value > 0)
    return {GPU_MEMORY: float(free_mib)} if free_mib else {}
