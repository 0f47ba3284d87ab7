"""Device memory of a served engine, read from the engine itself and written into the bundle for placement.

Invariant: a number in the bundle was read from an engine that was built on this host's GPU; where none can be built
the bundle has no number, and its evidence has the reason. An engine whose precision cannot be proved stops the export.

Covered: TensorRT, the default variant. Not covered: ONNX Runtime on a GPU (serving measures by NVML when it loads).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from cluster.bundle.manifest import Variant
from cluster.bundle.signature import TensorSignature
from cluster.errors import MissingDependencyError
from cluster.spec.serve import ROWS_AUTO_MAX, ServeSpec
from trainers.export.node_engine import EngineWish, NodeGpu, node_engine
from trainers.export.tensorrt import footprint_bytes, load_tensorrt


@dataclass(frozen=True)
class Node:
    """What engines are built with here."""

    trt: Any
    gpu: NodeGpu


def this_node() -> Node:
    """TensorRT and the first GPU that this process sees. Raises MissingDependencyError."""
    import torch

    trt = load_tensorrt()
    if not torch.cuda.is_available():
        raise MissingDependencyError(
            "Cannot build an engine here", found="CUDA is not available", rule="TensorRT builds on the GPU it is for"
        )
    properties = torch.cuda.get_device_properties(0)
    return Node(trt, NodeGpu(str(properties.name), f"{properties.major}.{properties.minor}"))


def with_footprint(
    variant: Variant, graph: Path, signature: TensorSignature, serve: ServeSpec, find: Callable[[], Node] = this_node
) -> tuple[Variant, dict[str, Any]]:
    """The variant with the memory of its engine, and the evidence. Builds, which takes minutes. Raises ModelError."""
    try:
        node = find()
    except MissingDependencyError as error:
        return variant, {"built": False, "why": error.message}
    max_rows = ROWS_AUTO_MAX if serve.batching.max_rows == "auto" else serve.batching.max_rows
    wish = EngineWish(graph, variant.precision, signature.inputs, max_rows)
    _, facts = node_engine(wish, serve.tensorrt, node.gpu, node.trt)
    total = footprint_bytes(facts) + serve.tensorrt.streams * buffer_bytes(signature, serve, max_rows)
    evidence = {"built": True, "gpu": node.gpu.name, "capability": node.gpu.capability, "max_rows": max_rows, **facts}
    return variant.model_copy(update={"footprint_bytes": total}), {**evidence, "footprint_bytes": total}


def buffer_bytes(signature: TensorSignature, serve: ServeSpec, max_rows: int) -> int:
    """Input and output buffers of one stream, at the profile's largest shapes; a free axis of an output counts as 1."""
    total = 0
    for tensor in (*signature.inputs, *signature.outputs):
        sizes = [
            serve.tensorrt.axes.get(f"{tensor.name}.{axis}", (1, 1))[1] if size == -1 else size
            for axis, size in enumerate(tensor.item_shape, start=1)
        ]
        total += max_rows * int(np.prod(sizes)) * tensor.dtype.itemsize
    return total
