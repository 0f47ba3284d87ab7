"""How static quantization is done for a CPU and for TensorRT: two presets of one quantizer.

Source: onnxruntime 1.32, docstring of `quantize_static` (CPU) and its BERT example for TensorRT.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from onnxruntime.quantization import CalibrationMethod, QuantType
from onnxruntime.quantization.registry import QDQRegistry, QLinearOpsRegistry

from cluster.spec.compress import CompressSpec
from trainers.compress.cpu import has_vnni

WEIGHTED = ("Conv", "Gemm", "MatMul")
THIN_CHANNELS_MAX = 2
"""A first convolution over 1 or 2 channels is 1.04-1.09 times as fast in float, over 3 equal, over 4 it loses 0.89
(2026-11-24, AMD EPYC with VNNI, onnxruntime 1.32, a network of 32 channels): so few products do not pay for packing."""


@dataclass(frozen=True)
class StaticPreset:
    """Arguments of `quantize_static` for one kind of device."""

    name: str
    activation: QuantType
    weight: QuantType
    per_channel: bool
    reduce_range: bool
    op_types: tuple[str, ...]
    symmetric: bool = False
    thin_channels_max: int = 0
    """Convolutions over at most so many channels stay in float, for speed."""
    options: Mapping[str, Any] = field(default_factory=dict)


def cpu_preset(*, per_channel: bool = True, vnni: bool | None = None) -> StaticPreset:
    """QUInt8 activations, QInt8 weights; 7-bit weights where the CPU lacks VNNI (sums of products would saturate)."""
    vnni = has_vnni() if vnni is None else vnni
    everything = tuple(sorted({*QDQRegistry, *QLinearOpsRegistry}))
    return StaticPreset(
        "cpu",
        QuantType.QUInt8,
        QuantType.QInt8,
        per_channel,
        reduce_range=not vnni,
        op_types=everything,
        thin_channels_max=THIN_CHANNELS_MAX,
    )


def tensorrt_preset(*, per_channel: bool = True) -> StaticPreset:
    """Symmetric INT8 with all zero points 0, only where there are weights, one Q/DQ pair for each consumer."""
    options = {
        "ActivationSymmetric": True,
        "WeightSymmetric": True,
        "QuantizeBias": False,
        "DedicatedQDQPair": True,
        "AddQDQPairToWeight": True,
        "OpTypesToExcludeOutputQuantization": list(WEIGHTED),
        "QDQOpTypePerChannelSupportToAxis": {"MatMul": 1},
    }
    return StaticPreset(
        "tensorrt", QuantType.QInt8, QuantType.QInt8, per_channel, False, WEIGHTED, symmetric=True, options=options
    )


@dataclass(frozen=True)
class StaticRecipe:
    """One way to quantize statically."""

    preset: StaticPreset
    method: CalibrationMethod = CalibrationMethod.MinMax
    percentile: float = 99.99
    exclude: tuple[str, ...] = ()
    """Names of nodes that stay in float."""
    only: tuple[str, ...] = ()
    """When not empty: only these nodes are quantized (to measure their sensitivity)."""


def preset_of(spec: CompressSpec, *, per_channel: bool = True) -> StaticPreset:
    """The preset of the spec's target."""
    make = tensorrt_preset if spec.target.device == "gpu" else cpu_preset
    return make(per_channel=per_channel)
