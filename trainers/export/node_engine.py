"""The engine of a graph for this node: kept from before, or built now. Serving calls it by name.

Invariant: what is returned was built for exactly this graph, these profiles, this TensorRT and this GPU, and has the
precision of its variant.

Covered: profiles from the serve section, one for each stream; the engine and timing caches. Not covered: which GPU is
current (the caller has chosen it), running (serve/engines/tensorrt.py).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from cluster.bundle.signature import TensorSpec
from cluster.errors import ModelError
from cluster.spec.serve import TensorRtSpec
from trainers.export.engine_cache import (
    cached_engine,
    engine_key,
    read_timing_cache,
    timing_cache_path,
    write_timing_cache,
)
from trainers.export.precision import Precision
from trainers.export.tensorrt import BuildRequest, BuiltEngine, Profile, build_engine


@dataclass(frozen=True)
class NodeGpu:
    """The GPU that an engine is for."""

    name: str
    capability: str
    """`9.0` and so on."""


@dataclass(frozen=True)
class EngineWish:
    """Which engine is wanted."""

    graph: Path
    precision: Precision
    inputs: tuple[TensorSpec, ...]
    max_rows: int


def node_engine(wish: EngineWish, settings: TensorRtSpec, gpu: NodeGpu, trt: Any) -> tuple[Path, dict[str, Any]]:
    """Path of the plan and its facts. A build takes minutes and blocks. Raises ModelError, BundleError."""
    folder = cache_folder(settings)
    version = str(trt.__version__)
    request = BuildRequest(
        graph=wish.graph,
        precision=wish.precision,
        profiles=make_profiles(wish.inputs, settings, max_rows=wish.max_rows),
        workspace_bytes=settings.workspace_bytes,
        optimization_level=settings.optimization_level,
    )
    key = engine_key(request, tensorrt=version, gpu=gpu.name, capability=gpu.capability)
    times = timing_cache_path(folder, tensorrt=version, gpu=gpu.name, capability=gpu.capability)

    def build() -> BuiltEngine:
        built = build_engine(replace(request, timing_cache=read_timing_cache(times)), trt)
        write_timing_cache(times, built.timing_cache)
        return built

    return cached_engine(folder, key, build)


def engine_for_serving(request: Any, gpu: tuple[str, str], trt: Any) -> Path:
    """The plan for serving's own request (serve/engines/engine.py), whose fields are read by name."""
    wish = EngineWish(request.path, request.precision, request.signature.inputs, request.max_rows)
    plan, _ = node_engine(wish, request.tensorrt, NodeGpu(*gpu), trt)
    return plan


def make_profiles(inputs: tuple[TensorSpec, ...], settings: TensorRtSpec, *, max_rows: int) -> tuple[Profile, ...]:
    """One profile for each stream: 1 row, the typical batch, the largest batch. Raises ModelError.

    The streams' profiles are alike; TensorRT wants one for each context that runs at the same time.
    """
    typical = min(settings.opt_rows or max_rows, max_rows)
    shapes = {tensor.name: _shapes(tensor, (1, typical, max_rows), settings.axes) for tensor in inputs}
    return (Profile(shapes),) * settings.streams


def cache_folder(settings: TensorRtSpec) -> Path:
    """Where this node keeps engines."""
    return Path(settings.cache).expanduser() if settings.cache else Path.home() / ".cache" / "manta" / "engines"


def _shapes(
    tensor: TensorSpec, rows: tuple[int, int, int], bounds: Mapping[str, tuple[int, int]]
) -> tuple[tuple[int, ...], tuple[int, ...], tuple[int, ...]]:
    axes = [rows, *((size, size, size) for size in tensor.item_shape)]
    for axis, size in enumerate(tensor.item_shape, start=1):
        if size != -1:
            continue
        name = f"{tensor.name}.{axis}"
        if name not in bounds:
            raise ModelError(
                "Cannot build a TensorRT engine",
                found=f"axis {axis} of input '{tensor.name}' has any length",
                rule="an engine is built for a range of lengths: 1, typical, longest",
                remedy=f"Set serve.tensorrt.axes to {{{name}: [64, 256]}} or what your data needs.",
            )
        axes[axis] = (1, *bounds[name])
    least, typical, most = (tuple(axis[i] for axis in axes) for i in range(3))
    return least, typical, most
