"""What a model takes and gives: named tensors with a datatype and a shape.

Names, datatypes and shapes are those of the Open Inference Protocol v2, so that training, ONNX and the endpoint
say the same thing. Axis 0 is always the batch and written -1; further -1 axes vary in length.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Literal

import numpy as np
from pydantic import Field

from cluster.errors import DataError
from cluster.spec.base import StrictSpec

Datatype = Literal[
    "BOOL",
    "UINT8",
    "UINT16",
    "UINT32",
    "UINT64",
    "INT8",
    "INT16",
    "INT32",
    "INT64",
    "FP16",
    "FP32",
    "FP64",
    "BYTES",
]
NUMPY_OF: dict[str, np.dtype] = {
    "BOOL": np.dtype(np.bool_),
    "UINT8": np.dtype(np.uint8),
    "UINT16": np.dtype(np.uint16),
    "UINT32": np.dtype(np.uint32),
    "UINT64": np.dtype(np.uint64),
    "INT8": np.dtype(np.int8),
    "INT16": np.dtype(np.int16),
    "INT32": np.dtype(np.int32),
    "INT64": np.dtype(np.int64),
    "FP16": np.dtype(np.float16),
    "FP32": np.dtype(np.float32),
    "FP64": np.dtype(np.float64),
    "BYTES": np.dtype(object),
}
DATATYPE_OF: dict[np.dtype, str] = {dtype: name for name, dtype in NUMPY_OF.items()}


class TensorSpec(StrictSpec):
    """One named tensor."""

    name: str
    datatype: Datatype
    shape: Annotated[tuple[int, ...], Field(min_length=1)]
    """Axis 0 is -1, the batch."""

    @property
    def dtype(self) -> np.dtype:
        return NUMPY_OF[self.datatype]

    @property
    def item_shape(self) -> tuple[int, ...]:
        """Shape of one row."""
        return self.shape[1:]

    def mismatch(self, array: np.ndarray) -> str | None:
        """Why `array` does not fit, as half a sentence, or None."""
        if array.dtype != self.dtype:
            return f"has datatype {DATATYPE_OF.get(array.dtype, array.dtype)}, expected {self.datatype}"
        fits = len(array.shape) == len(self.shape) and all(
            want in (-1, have) for want, have in zip(self.shape, array.shape, strict=True)
        )
        return None if fits else f"has shape {list(array.shape)}, expected {list(self.shape)}"


class TensorSignature(StrictSpec):
    """Inputs in the order of the model's forward, and outputs in the order it returns them."""

    inputs: Annotated[tuple[TensorSpec, ...], Field(min_length=1)]
    outputs: Annotated[tuple[TensorSpec, ...], Field(min_length=1)]

    def check_inputs(self, arrays: Mapping[str, np.ndarray]) -> None:
        """Raise DataError for a missing, unknown or unfit input, or for rows that differ between inputs."""
        problems = [f"input {name!r} is unknown" for name in arrays if name not in {t.name for t in self.inputs}]
        for tensor in self.inputs:
            if tensor.name not in arrays:
                problems.append(f"input {tensor.name!r} is missing")
            elif why := tensor.mismatch(arrays[tensor.name]):
                problems.append(f"input {tensor.name!r} {why}")
        if not problems and len(rows := {len(array) for array in arrays.values()}) > 1:
            problems.append(f"inputs have different numbers of rows: {sorted(rows)}")
        if problems:
            raise DataError(
                "Cannot use these inputs",
                found="; ".join(problems),
                rule="the model takes " + ", ".join(f"{t.name} {t.datatype} {list(t.shape)}" for t in self.inputs),
            )
