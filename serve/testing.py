"""The room's test double that a server can load: a file that stands for a model, on any device.

A variant whose file ends in `.simulated` is JSON: the memory that the engine claims, and the faults that it has. Output
row i is the sum of the first input's row i, so that an answer can be traced to its request. Placement, faults and
roll-outs are tested with it on a cluster without its GPUs.

Invariant: it holds no memory and runs no code of the bundle. Covered: size, slowness, and failures at load, for large
batches and for marked rows. Not covered: anything that only a real device does.
"""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Mapping

import numpy as np
from pydantic import ValidationError

from cluster.bundle.signature import TensorSignature
from cluster.errors import BundleError, InferenceError
from cluster.spec.base import StrictSpec
from serve.engines.engine import EngineRequest


class Simulation(StrictSpec):
    """The file. `*_at` is a value: a request whose first number equals it triggers the fault."""

    footprint_bytes: int = 0
    call_s: float = 0.0
    refuse: str | None = None
    """Why the file cannot be loaded: a plan for another GPU, a broken graph."""
    memory_rows: int | None = None
    """A call with more rows raises what a full GPU raises."""
    raise_at: float | None = None
    wedge_at: float | None = None
    """The call never returns."""
    die_at: float | None = None
    """The process ends without a word."""


class SimulatedEngine:
    """Sums rows, with the faults of a file."""

    platform = "simulated"

    def __init__(self, request: EngineRequest) -> None:
        try:
            self._plan = Simulation.model_validate_json(request.path.read_bytes())
        except (OSError, ValidationError) as error:
            raise BundleError(f"Cannot load {request.path.name}", found=str(error)[:500]) from None
        if self._plan.refuse is not None:
            raise BundleError(f"Cannot load {request.path.name}", found=self._plan.refuse)
        self.preferred_rows: tuple[int, ...] = ()
        self._signature = request.signature

    def run(self, inputs: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        plan, first = self._plan, inputs[self._signature.inputs[0].name]
        if plan.memory_rows is not None and len(first) > plan.memory_rows:
            raise InferenceError("Cannot run the model", found=f"CUDA out of memory for a batch of {len(first)} rows")
        marks = set(first.reshape(len(first), -1)[:, 0].tolist()) if first.dtype.kind in "fiu" else set()
        if plan.die_at in marks:
            os._exit(1)
        if plan.wedge_at in marks:
            threading.Event().wait()
        if plan.raise_at in marks:
            raise ValueError(f"a row holds {plan.raise_at}")
        if plan.call_s:
            time.sleep(plan.call_s)  # the work that it stands for
        return row_sums(self._signature, inputs)

    def footprint_bytes(self) -> int | None:
        return self._plan.footprint_bytes

    def close(self) -> None:
        return None


def row_sums(signature: TensorSignature, inputs: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Each output: the sum of the first input's rows, repeated over the output's row shape (free axes become 1)."""
    first = inputs[signature.inputs[0].name]
    total = first.reshape(len(first), -1).sum(axis=1, dtype=np.float64)
    found = {}
    for tensor in signature.outputs:
        item = tuple(1 if size == -1 else size for size in tensor.item_shape)
        column = total.reshape(len(total), *(1 for _ in item)).astype(tensor.dtype)
        found[tensor.name] = np.broadcast_to(column, (len(total), *item)).copy()
    return found
