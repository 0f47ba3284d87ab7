"""`export`: the file format of the model and how its parity with torch is checked."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from cluster.spec.base import PositiveFloat, StrictSpec


class ParitySpec(StrictSpec):
    """Largest difference between torch and the exported file, on real samples at batch 1, 2 and an odd size. Of a
    quantity `absolute` counts in deviations of its training values, and `relative` is to the distance from their mean
    (after a logarithm: to the value)."""

    absolute: PositiveFloat = 1e-4
    relative: PositiveFloat = 1e-3


class OptimizeSpec(StrictSpec):
    """Rewriting of the float graph, beside the exporter's own optimizer; never of a quantized graph."""

    onnxslim: bool = False
    """Fold shapes and drop dead nodes by onnxslim (the `optimize` extra)."""
    transformer: bool = False
    """Fuse attention, layer norms and Gelu into ONNX Runtime's operators where the graph has a transformer's pattern.
    For serve.engine onnxruntime: TensorRT knows none of them. The stage's facts count what was fused."""


FusedPart = Literal["normalize", "softmax", "labels"]


class ExportSpec(StrictSpec):
    """ONNX export."""

    opset: Annotated[int, Field(ge=18)] = 20
    optimize: OptimizeSpec = OptimizeSpec()
    fuse: tuple[FusedPart, ...] = ()
    """Put work of the endpoint into the graph. `normalize`: the model takes raw values, the graph standardizes (images
    and arrays). `softmax`: an output `probabilities` beside `logits`. `labels`: an output `label` with the class's
    name; not for TensorRT, which has no strings."""
    parity: ParitySpec = ParitySpec()
