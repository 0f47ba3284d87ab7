"""INT8 by ONNX Runtime's quantizer, with one preset for CPUs and one for TensorRT.

Invariant: the float graph is never changed; a quantized file holds QuantizeLinear/DequantizeLinear pairs of the preset
that was asked for, and no constant folding runs after they were inserted.

Covered: static QDQ on the CPU. Not covered: 4-bit weights; SmoothQuant (its dependency is gone upstream).
"""

from __future__ import annotations

import logging
import math
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from onnxruntime.quantization import CalibrationDataReader, CalibrationMethod, QuantFormat, QuantType, quantize_static
from onnxruntime.quantization.shape_inference import quant_pre_process

from cluster.errors import DataError
from trainers.compress.cpu import has_vnni

CALIBRATION_BATCH_ROWS = 32


@dataclass(frozen=True)
class StaticPreset:
    """Arguments of `quantize_static` for one kind of device."""

    name: str
    activation: QuantType
    weight: QuantType
    per_channel: bool
    reduce_range: bool
    op_types: tuple[str, ...] = ()
    """Empty: all that the quantizer knows."""
    options: Mapping[str, Any] = field(default_factory=dict)


def cpu_preset(*, vnni: bool | None = None) -> StaticPreset:
    """QUInt8 activations, QInt8 weights per channel; 7-bit weights where the CPU lacks VNNI (they would saturate)."""
    vnni = has_vnni() if vnni is None else vnni
    return StaticPreset("cpu", QuantType.QUInt8, QuantType.QInt8, per_channel=True, reduce_range=not vnni)


class BatchReader(CalibrationDataReader):
    """Streams calibration rows in batches; holds one batch in memory."""

    def __init__(self, inputs: Mapping[str, np.ndarray], batch_rows: int = CALIBRATION_BATCH_ROWS) -> None:
        rows = len(next(iter(inputs.values()), ()))
        if not rows:
            raise DataError(
                "Cannot calibrate",
                found="there are no calibration rows",
                rule="static quantization takes the ranges of activations from real rows",
                remedy="Make data.split.calibration larger.",
            )
        self._inputs = inputs
        self._batch_rows = batch_rows
        self._rows = rows
        self._next = 0

    def get_next(self) -> dict[str, np.ndarray] | None:
        if self._next >= self._rows:
            return None
        chosen = slice(self._next, self._next + self._batch_rows)
        self._next += self._batch_rows
        return {name: np.ascontiguousarray(array[chosen]) for name, array in self._inputs.items()}

    def __len__(self) -> int:
        return math.ceil(self._rows / self._batch_rows)


def preprocess(source: Path, target: Path) -> None:
    """Shape inference and basic graph optimization, which the quantizer needs before it inserts Q/DQ pairs."""
    with quiet_quantizer():
        quant_pre_process(str(source), str(target), skip_symbolic_shape=True)


def quantize_int8_static(
    prepared: Path, target: Path, calibration: Mapping[str, np.ndarray], preset: StaticPreset
) -> None:
    """Write the INT8 form of a graph that `preprocess` wrote."""
    with quiet_quantizer(), tempfile.TemporaryDirectory(prefix="manta-quantize-") as scratch:
        out = Path(scratch) / "out.onnx"
        quantize_static(
            str(prepared),
            str(out),
            BatchReader(calibration),
            quant_format=QuantFormat.QDQ,
            op_types_to_quantize=list(preset.op_types) or None,
            per_channel=preset.per_channel,
            reduce_range=preset.reduce_range,
            activation_type=preset.activation,
            weight_type=preset.weight,
            calibrate_method=CalibrationMethod.MinMax,
            extra_options=dict(preset.options),
        )
        target.write_bytes(out.read_bytes())


@contextmanager
def quiet_quantizer() -> Iterator[None]:
    """ONNX Runtime's quantizer advises on the root logger; its advice is followed here, so it is not shown."""
    root = logging.getLogger()
    level = root.level
    root.setLevel(logging.ERROR)
    try:
        yield
    finally:
        root.setLevel(level)
