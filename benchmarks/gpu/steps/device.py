"""Which device, driver and versions."""

from __future__ import annotations

import os
import platform
from importlib import metadata

import torch

from benchmarks.gpu.findings import Context, Findings

PACKAGES = ("torch", "triton", "onnx", "onnxruntime", "onnxruntime-gpu", "onnxscript", "tensorrt", "numpy", "pytest")


def run(context: Context, findings: Findings) -> None:
    from cluster.probe.gpus import NvmlSource

    versions = {name: version for name in PACKAGES if (version := _version(name))}
    facts = {
        "name": "CPU",
        "python": platform.python_version(),
        "cores": len(os.sched_getaffinity(0)),
        "versions": versions,
    }
    if not context.dry:
        device = torch.device(context.device)
        properties = torch.cuda.get_device_properties(device)
        reading = NvmlSource().read()
        facts |= {
            "name": properties.name,
            "capability": f"{properties.major}.{properties.minor}",
            "memory_gib": round(properties.total_memory / (1 << 30), 2),
            "driver": reading.driver_version,
            "cuda_of_driver": reading.cuda_driver_version,
            "cuda_of_torch": torch.version.cuda,
            "cudnn": torch.backends.cudnn.version(),
        }
    findings.put("device", **facts)


def _version(name: str) -> str | None:
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return None
