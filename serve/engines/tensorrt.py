"""A TensorRT plan behind the `Engine` protocol. TensorRT 11 API; 10 has the same names.

TensorRT says no by None or False: each such call ends in one error with the logger's lines. Device buffers are torch
CUDA tensors; calls go to a stream of their own, because the default one adds synchronizations.

Not run on a GPU so far: written against the API table of TensorRT 11.4's own bindings. Covered: one optimization
profile, dynamic batch, any number of inputs and outputs. Not covered: data-dependent output shapes, CUDA graphs.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from cluster.errors import BundleError, InferenceError, MissingDependencyError
from serve.engines.protocol import EngineRequest


class TensorRtEngine:
    """One deserialized plan with one execution context."""

    platform = "tensorrt_plan"

    def __init__(self, request: EngineRequest) -> None:
        trt, torch = _modules(request)
        self._trt, self._torch, self._device = trt, torch, request.device
        self._name = request.path.name
        self._logger = trt.Logger(trt.Logger.ERROR)
        self._runtime = trt.Runtime(self._logger)
        with torch.cuda.device(request.device):
            self._engine: Any = self._runtime.deserialize_cuda_engine(request.path.read_bytes())
            if self._engine is None:
                raise BundleError(
                    f"Cannot load {self._name}",
                    found="TensorRT does not take the plan",
                    rule=f"a plan runs on the kind of GPU and the version ({trt.__version__}) it was built for",
                    remedy="Build it on this node: the bundle's ONNX graph is the portable form.",
                )
            self._context: Any = self._engine.create_execution_context()
            if self._context is None:
                raise BundleError(f"Cannot load {self._name}", found="no execution context: GPU memory is too small")
            self._stream: Any = torch.cuda.Stream(request.device)
        names = [self._engine.get_tensor_name(index) for index in range(self._engine.num_io_tensors)]
        mode = self._engine.get_tensor_mode
        self._inputs = [name for name in names if mode(name) == trt.TensorIOMode.INPUT]
        self._outputs = [name for name in names if mode(name) == trt.TensorIOMode.OUTPUT]
        self.preferred_rows = self._profile_rows(request.max_rows)

    def run(self, inputs: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        torch = self._torch
        with torch.cuda.device(self._device), torch.cuda.stream(self._stream):
            held = {name: torch.from_numpy(np.array(inputs[name])).to(self._device) for name in self._inputs}
            for name, tensor in held.items():
                self._need(self._context.set_input_shape(name, tuple(tensor.shape)), f"the shape of input {name!r}")
                self._need(self._context.set_tensor_address(name, tensor.data_ptr()), f"input {name!r}")
            missing = self._context.infer_shapes()
            if missing:
                raise InferenceError("Cannot run the engine", found=f"shapes are missing for {', '.join(missing)}")
            found = {name: self._output(name) for name in self._outputs}
            for name, tensor in found.items():
                self._need(self._context.set_tensor_address(name, tensor.data_ptr()), f"output {name!r}")
            self._need(self._context.execute_async_v3(self._stream.cuda_stream), "the call")
            answer = {name: tensor.to("cpu", non_blocking=True) for name, tensor in found.items()}
            self._stream.synchronize()
        return {name: tensor.numpy() for name, tensor in answer.items()}

    def footprint_bytes(self) -> int | None:
        weights = self._engine.get_engine_stat(self._trt.EngineStat.TOTAL_WEIGHTS_SIZE)
        return int(self._engine.device_memory_size_v2) + int(weights)

    def close(self) -> None:
        self._context = self._engine = self._runtime = None
        self._torch.cuda.empty_cache()

    def _output(self, name: str) -> Any:
        dtype = np.dtype(self._trt.nptype(self._engine.get_tensor_dtype(name)))
        like = self._torch.from_numpy(np.empty(0, dtype)).dtype
        return self._torch.empty(tuple(self._context.get_tensor_shape(name)), dtype=like, device=self._device)

    def _profile_rows(self, max_rows: int) -> tuple[int, ...]:
        """The batch that the profile was tuned for, as a preferred size. Raises BundleError when it is too small."""
        low, best, high = (int(shape[0]) for shape in self._engine.get_tensor_profile_shape(self._inputs[0], 0))
        if low > 1 or high < max_rows:
            raise BundleError(
                f"Cannot load {self._name}",
                found=f"its profile takes {low} to {high} rows",
                rule=f"serve.batching.max_rows is {max_rows}, and a request may have one row",
                remedy="Lower serve.batching.max_rows, or build the plan with a larger profile.",
            )
        return (best,)

    def _need(self, value: Any, what: str) -> None:
        if value is False or value is None:
            raise InferenceError("Cannot run the engine", found=f"TensorRT refused {what}")


def _modules(request: EngineRequest) -> tuple[Any, Any]:
    try:
        import tensorrt
        import torch
    except ImportError as error:
        raise MissingDependencyError(
            f"Cannot load {request.path.name}",
            found=str(error),
            remedy="Install the extra: pip install 'manta-ml[gpu]'.",
        ) from None
    if not request.device.startswith("cuda") or not torch.cuda.is_available():
        raise MissingDependencyError(
            f"Cannot load {request.path.name}",
            found=f"the device is {request.device} and CUDA is {'' if torch.cuda.is_available() else 'not '}available",
            rule="a TensorRT plan needs an NVIDIA GPU",
            remedy="Serve the ONNX variant.",
        )
    return tensorrt, torch
