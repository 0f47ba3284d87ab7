"""The `Cuda` seam on host memory, for level L3: what was recorded and freed can be looked at."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np


class HostCuda:
    """Buffers are numpy arrays, streams are numbers from 1, a recorded call is the call itself."""

    def __init__(self, name: str = "fake GPU", capability: str = "9.0") -> None:
        self._gpu = (name, capability)
        self.streams = 0
        self.recorded = 0
        self.replayed = 0
        self.released = False

    def gpu(self) -> tuple[str, str]:
        return self._gpu

    def stream(self) -> tuple[Any, int]:
        self.streams += 1
        return self.streams, self.streams

    def buffer(self, num_bytes: int) -> tuple[Any, int]:
        made = np.full(num_bytes, 0xEE, np.uint8)
        return made, int(made.ctypes.data)

    def write(self, buffer: Any, array: np.ndarray, stream: Any) -> None:
        raw = np.ascontiguousarray(array).reshape(-1).view(np.uint8)
        buffer[: raw.nbytes] = raw

    def read(self, buffer: Any, shape: tuple[int, ...], dtype: np.dtype, stream: Any) -> np.ndarray:
        found: np.ndarray = buffer[: int(np.prod(shape)) * dtype.itemsize].copy().view(dtype).reshape(shape)
        return found

    def synchronize(self, stream: Any) -> None:
        assert stream

    def record(self, call: Callable[[], None], stream: Any) -> Callable[[], None]:
        self.recorded += 1

        def replay() -> None:
            self.replayed += 1
            call()

        return replay

    def on_device(self, call: Callable[[], Any]) -> Any:
        return call()

    def release(self) -> None:
        self.released = True
