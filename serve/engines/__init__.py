"""Engines: what turns arrays into arrays. One table, one function that makes the right one for a file."""

from __future__ import annotations

import importlib

from cluster.errors import BundleError
from serve.engines.engine import Engine, EngineRequest

ENGINES: dict[str, str] = {
    ".onnx": "serve.engines.onnxruntime:OnnxRuntimeEngine",
    ".plan": "serve.engines.tensorrt:TensorRtEngine",
    ".safetensors": "serve.engines.torch:TorchEngine",
    ".simulated": "serve.testing:SimulatedEngine",
}
"""Suffix of a variant's file -> class. Imported when used: a CPU host has no TensorRT."""

__all__ = ["ENGINES", "Engine", "EngineRequest", "make_engine"]


def make_engine(request: EngineRequest) -> Engine:
    """Load a variant's file. Raises BundleError, MissingDependencyError, MemoryShortError."""
    kind = ".plan" if request.tensorrt is not None and request.path.suffix == ".onnx" else request.path.suffix
    try:
        module, _, name = ENGINES[kind].partition(":")
    except KeyError:
        raise BundleError(
            f"Cannot load {request.path.name}",
            found=f"no engine takes files of type {request.path.suffix!r}",
            rule=f"engines take {', '.join(sorted(ENGINES))}",
        ) from None
    engine: Engine = getattr(importlib.import_module(module), name)(request)
    return engine
