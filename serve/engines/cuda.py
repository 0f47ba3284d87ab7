"""What a TensorRT engine needs of CUDA: streams, buffers, copies, recorded calls. By torch, behind a narrow seam.

Invariant: every call of a stream's work names that stream; nothing uses the default stream, which would make all
streams wait for each other.

Covered: one device. Not covered: pinned host buffers, peers.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any, Protocol

import numpy as np

from cluster.errors import MissingDependencyError
from cluster.probe.tensorrt_calls import INSTALL

RECORDING = threading.Lock()


class Cuda(Protocol):
    """One GPU as an engine uses it. Streams, buffers and graphs are opaque."""

    def gpu(self) -> tuple[str, str]:
        """Name and compute capability (`9.0`)."""
        ...

    def stream(self) -> tuple[Any, int]:
        """A new stream and its handle as a number."""
        ...

    def buffer(self, num_bytes: int) -> tuple[Any, int]:
        """Device memory and its address."""
        ...

    def write(self, buffer: Any, array: np.ndarray, stream: Any) -> None:
        """Copy an array to the beginning of a buffer, in the stream's order."""
        ...

    def read(self, buffer: Any, shape: tuple[int, ...], dtype: np.dtype, stream: Any) -> np.ndarray:
        """A copy of the beginning of a buffer, after the work queued on the stream. Blocks."""
        ...

    def synchronize(self, stream: Any) -> None:
        """Block until the stream has done all."""
        ...

    def record(self, call: Callable[[], None], stream: Any) -> Callable[[], None]:
        """Record what `call` puts on the stream as a CUDA graph; returns what replays it on that stream."""
        ...

    def on_device(self, call: Callable[[], Any]) -> Any:
        """Run `call` with this GPU as the thread's current one."""
        ...

    def release(self) -> None:
        """Give cached memory back to the driver."""
        ...


class TorchCuda:
    """`Cuda` by torch's CUDA tensors and streams."""

    def __init__(self, device: str) -> None:
        import torch

        if not device.startswith("cuda") or not torch.cuda.is_available():
            raise MissingDependencyError(
                "Cannot use a TensorRT engine",
                found=f"the device is {device} and CUDA is {'' if torch.cuda.is_available() else 'not '}available",
                rule="a TensorRT engine needs an NVIDIA GPU",
                remedy="Serve the ONNX variant, or " + INSTALL[0].lower() + INSTALL[1:],
            )
        self._torch: Any = torch
        self._device: Any = torch.device(device if ":" in device else f"{device}:0")

    def gpu(self) -> tuple[str, str]:
        properties = self._torch.cuda.get_device_properties(self._device)
        return str(properties.name), f"{properties.major}.{properties.minor}"

    def stream(self) -> tuple[Any, int]:
        made = self._torch.cuda.Stream(self._device)
        return made, int(made.cuda_stream)

    def buffer(self, num_bytes: int) -> tuple[Any, int]:
        # TensorRT wants 256-byte alignment, which torch's allocator gives (512)
        made = self._torch.empty(max(1, num_bytes), dtype=self._torch.uint8, device=self._device)
        return made, int(made.data_ptr())

    def write(self, buffer: Any, array: np.ndarray, stream: Any) -> None:
        raw = np.array(array, order="C").reshape(-1).view(np.uint8)  # a copy: torch wants to own a writable one
        with self._torch.cuda.stream(stream):
            buffer[: raw.nbytes].copy_(self._torch.from_numpy(raw), non_blocking=True)

    def read(self, buffer: Any, shape: tuple[int, ...], dtype: np.dtype, stream: Any) -> np.ndarray:
        num_bytes = int(np.prod(shape)) * dtype.itemsize
        with self._torch.cuda.stream(stream):
            raw = buffer[:num_bytes].cpu()
        self.synchronize(stream)
        found: np.ndarray = raw.numpy().view(dtype).reshape(shape)
        return found

    def synchronize(self, stream: Any) -> None:
        stream.synchronize()

    def record(self, call: Callable[[], None], stream: Any) -> Callable[[], None]:
        graph = self._torch.cuda.CUDAGraph()
        # thread_local: other streams' threads may go on allocating and copying while this one records. One recording
        # at a time: torch synchronizes the device before it begins, which CUDA forbids while another one is under way
        with RECORDING, self._torch.cuda.graph(graph, stream=stream, capture_error_mode="thread_local"):
            call()

        def replay() -> None:
            with self._torch.cuda.stream(stream):
                graph.replay()

        return replay

    def on_device(self, call: Callable[[], Any]) -> Any:
        with self._torch.cuda.device(self._device):
            return call()

    def release(self) -> None:
        self._torch.cuda.empty_cache()
