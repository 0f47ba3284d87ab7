"""A file that plays a model: for rehearsing placement, faults and roll-outs on a cluster without its GPUs.

A variant whose file ends in `.rehearsal` is JSON: what the engine says of its memory, and with what it answers.
Output row i is the sum of the first input's row i (serve/engines/fake.py), on any device.

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

from cluster.errors import BundleError, InferenceError
from cluster.spec.base import StrictSpec
from serve.engines.fake import FakeEngine
from serve.engines.protocol import EngineRequest


class Rehearsal(StrictSpec):
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


class RehearsalEngine:
    """`FakeEngine` with the faults of a file."""

    platform = "rehearsal"

    def __init__(self, request: EngineRequest) -> None:
        try:
            self._plan = Rehearsal.model_validate_json(request.path.read_bytes())
        except (OSError, ValidationError) as error:
            raise BundleError(f"Cannot load {request.path.name}", found=str(error)[:500]) from None
        if self._plan.refuse is not None:
            raise BundleError(f"Cannot load {request.path.name}", found=self._plan.refuse)
        self.preferred_rows: tuple[int, ...] = ()
        self._engine = FakeEngine(request.signature)
        self._first = request.signature.inputs[0].name

    def run(self, inputs: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        plan, first = self._plan, inputs[self._first]
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
            time.sleep(plan.call_s)  # the work that it plays
        return self._engine.run(inputs)

    def footprint_bytes(self) -> int | None:
        return self._plan.footprint_bytes

    def close(self) -> None:
        self._engine.close()
