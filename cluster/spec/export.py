"""`export`: the file format of the model and how its parity with torch is checked."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from cluster.spec.base import PositiveFloat, StrictSpec


class ParitySpec(StrictSpec):
    """Largest difference between torch and the exported file, on real samples at batch 1, 2 and an odd size."""

    absolute: PositiveFloat = 1e-4
    relative: PositiveFloat = 1e-3


class ExportSpec(StrictSpec):
    """ONNX export."""

    opset: Annotated[int, Field(ge=18)] = 20
    parity: ParitySpec = ParitySpec()
