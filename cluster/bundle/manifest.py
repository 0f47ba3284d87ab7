"""`manifest.json`: the table of contents of a bundle, and all that serving needs to know about it.

A bundle is a folder: `manifest.json model.onnx [model.int8.onnx …] weights.safetensors transforms.json sample.npz
evidence/`. Invariant: no pickle anywhere in it, and every file is listed with its size and sha256, so that loading
a bundle never runs code and a changed byte is found.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Field

from cluster.bundle.signature import TensorSignature
from cluster.bundle.target import TargetTransform
from cluster.spec.base import StrictSpec

FORMAT_VERSION = 1
MANIFEST = "manifest.json"


class FileRecord(StrictSpec):
    """One file of the bundle."""

    sha256: Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]
    size_bytes: Annotated[int, Field(ge=0)]


class Variant(StrictSpec):
    """One servable form of the model: the float graph, a quantized one, …"""

    name: str
    """`fp32`, `int8_static`, …"""
    file: str
    """Path inside the bundle."""
    precision: Literal["fp32", "fp16", "bf16", "int8"]
    recipe: str = "none"
    verdict: Literal["baseline", "pass", "fail", "inconclusive"] = "baseline"
    metrics: dict[str, float] = {}
    """`gate.accuracy`, `latency_ms_p50`, …"""
    rows_independent: bool | None = None
    """Whether a row's answer is the same alone and in any company (bundle/independence.py). `false`: an endpoint joins
    no requests; null, in bundles of older versions: it finds out when it loads the variant."""
    footprint_bytes: int | None = None
    """Measured memory of the loaded engine at its largest batch; null where not measured."""


class BundleManifest(StrictSpec):
    """Everything about a bundle except its bytes."""

    format: Literal["manta.bundle"] = "manta.bundle"
    format_version: Literal[1] = 1
    name: str
    created_unix_s: float
    task: Literal["classification", "regression"]
    classes: tuple[str, ...] = ()
    """Class labels in the order of the output's last axis; empty for regression."""
    signature: TensorSignature
    target: TargetTransform | None = None
    """How a quantity was learned. The graphs have undone it already; who rebuilds the torch module needs it."""
    variants: Annotated[tuple[Variant, ...], Field(min_length=1)]
    default_variant: str
    """The variant that an endpoint serves by default."""
    model: dict[str, Any]
    """Resolved `model` section: with the family's code and weights.safetensors it rebuilds the torch module."""
    metrics: dict[str, float] = {}
    """Test metrics of the default variant, `test.accuracy` and so on."""
    source: dict[str, Any] = {}
    """Run, spec digest, versions, data digest: where this came from."""
    files: dict[str, FileRecord]

    def variant(self, name: str | None = None) -> Variant:
        """The named variant, or the default one. Raises KeyError."""
        wanted = name or self.default_variant
        return {variant.name: variant for variant in self.variants}[wanted]
