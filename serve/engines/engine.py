"""What an engine is: something that turns input arrays into output arrays. Read this before any engine.

An engine is made for one file of a bundle, is used from one thread at a time (from as many as its `streams`, where
it has that attribute), and frees everything in `close`.
`run` takes arrays that fit the signature (the data plane has checked them) and any number of rows from 1 to `max_rows`;
it raises for what it cannot do, and never changes its inputs. Conformance: tests/contract/engine_conformance.py.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, Protocol

import numpy as np

from cluster.bundle.signature import TensorSignature
from cluster.bundle.target import TargetTransform
from cluster.spec.serve import TensorRtSpec


@dataclass(frozen=True)
class EngineRequest:
    """What to load and how."""

    path: Path
    signature: TensorSignature
    max_rows: int
    device: str = "cpu"
    """`cpu`, or `cuda:0` and so on."""
    num_threads: int = 0
    """Threads of one call on a CPU; 0 leaves it to the engine."""
    model: dict[str, Any] | None = None
    """The manifest's `model` section, for engines that rebuild the torch module."""
    target: TargetTransform | None = None
    """The manifest's transform of a quantity, for the same."""
    precision: Literal["fp32", "fp16", "bf16", "int8"] = "fp32"
    """What the variant computes in; TensorRT proves it."""
    tensorrt: TensorRtSpec | None = None
    """Build (or find) a TensorRT engine for an ONNX graph; None runs the graph in ONNX Runtime."""


class Engine(Protocol):
    """One loaded model."""

    platform: str
    """Name in the protocol's metadata: `onnx_onnxv1`, `tensorrt_plan`, `pytorch_state`, …"""
    preferred_rows: tuple[int, ...]
    """Batch sizes for which the engine was built; empty when all are alike."""

    def run(self, inputs: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        """Outputs by name, one row for each row of input."""
        ...

    def footprint_bytes(self) -> int | None:
        """Memory that this engine holds on its device; None when it is unknown."""
        ...

    def close(self) -> None:
        """Free everything. Called once, after the last `run`."""
        ...
