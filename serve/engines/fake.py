"""An engine for tests: answers at once, or slowly, or wrongly, as it is told. Lives beside the real ones.

Output row i is the sum of the first input's row i, so that an answer can be traced to its request.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping

import numpy as np

from cluster.bundle.signature import TensorSignature

Fault = Callable[[Mapping[str, np.ndarray]], dict[str, np.ndarray] | None]


class FakeEngine:
    """Sums rows. `fault` may raise or return a wrong answer; None from it means the right one."""

    platform = "fake"

    def __init__(self, signature: TensorSignature, *, fault: Fault | None = None) -> None:
        self.preferred_rows: tuple[int, ...] = ()
        self.signature = signature
        self.fault = fault
        self.calls: list[int] = []
        self.closed = False
        self.gate = threading.Event()
        """Cleared, it holds every call until it is set again."""
        self.gate.set()

    def run(self, inputs: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        first = inputs[self.signature.inputs[0].name]
        self.calls.append(len(first))
        self.gate.wait()
        if self.fault is not None and (answer := self.fault(inputs)) is not None:
            return answer
        total = first.reshape(len(first), -1).sum(axis=1, dtype=np.float64)
        return {tensor.name: _spread(total, tensor.dtype, tensor.item_shape) for tensor in self.signature.outputs}

    def footprint_bytes(self) -> int | None:
        return 0

    def close(self) -> None:
        self.closed = True
        self.gate.set()


def _spread(total: np.ndarray, dtype: np.dtype, item_shape: tuple[int, ...]) -> np.ndarray:
    """Row sums repeated over the output's row shape; axes of free length become 1."""
    item = tuple(1 if size == -1 else size for size in item_shape)
    column = total.reshape(len(total), *(1 for _ in item)).astype(dtype)
    return np.broadcast_to(column, (len(total), *item)).copy()
