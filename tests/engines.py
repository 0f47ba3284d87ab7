"""An engine for tests in one process: answers at once, or slowly, or wrongly. Not a fixture: give it to a model.

Output row i is the sum of the first input's row i, so that an answer can be traced to its request.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping

import numpy as np

from cluster.bundle.signature import TensorSignature
from serve.testing import row_sums

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
        self.calls.append(len(inputs[self.signature.inputs[0].name]))
        self.gate.wait()
        if self.fault is not None and (answer := self.fault(inputs)) is not None:
            return answer
        return row_sums(self.signature, inputs)

    def footprint_bytes(self) -> int | None:
        return 0

    def close(self) -> None:
        self.closed = True
        self.gate.set()
