"""A TensorRT engine behind the `Engine` protocol: built on this node from an ONNX graph, or a given plan.

For a graph, the training room's builder is found by name (cluster/entrypoints.load): it keeps engines by graph,
version, GPU, profiles and flags, so that a restart finds what was built. TensorRT 11 API; 10 has the same names.

Each of the engine's `streams` has an execution context, an optimization profile, a CUDA stream and buffers of its own,
of the profile's largest shapes: addresses never change, so a recorded call (CUDA graph) stays valid until the shape
changes. A shape that comes `RECORD_AFTER` times in a row is recorded; any other shape drops the record.

Invariant: an answer is of the shapes that were asked, or an error that names what TensorRT refused; no two calls share
a context.

Covered: dynamic batch and further axes by profiles, any number of inputs and outputs. Not covered: outputs whose
shapes depend on values. What was verified, and on what, is in docs/tensorrt.md.
"""

from __future__ import annotations

import queue
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from cluster.entrypoints import load
from cluster.errors import BundleError, InferenceError, MantaError, MissingDependencyError
from cluster.probe.tensorrt_calls import INSTALL, TensorRtCalls
from serve.engines.cuda import Cuda, TorchCuda
from serve.engines.engine import EngineRequest

BUILDER = "trainers.export.node_engine:engine_for_serving"
RECORD_AFTER = 3  # calls of one shape in a row; recording costs about ten calls and a synchronization
DTYPES: dict[str, np.dtype] = {
    "FLOAT": np.dtype(np.float32),
    "HALF": np.dtype(np.float16),
    "INT8": np.dtype(np.int8),
    "UINT8": np.dtype(np.uint8),
    "INT32": np.dtype(np.int32),
    "INT64": np.dtype(np.int64),
    "BOOL": np.dtype(np.bool_),
}
"""TensorRT's types that numpy has too; a graph's inputs and outputs must be of these."""


class TensorRtEngine:
    """One deserialized engine with a slot for each stream."""

    platform = "tensorrt_plan"

    def __init__(self, request: EngineRequest, *, trt: Any = None, cuda: Cuda | None = None) -> None:
        self._trt = trt if trt is not None else _tensorrt(request)
        self._cuda: Cuda = cuda if cuda is not None else TorchCuda(request.device)
        self._name = request.path.name
        calls = TensorRtCalls(self._trt, attempted=f"Cannot load {self._name}", error=BundleError)
        self._calls = calls
        self._cuda.on_device(lambda: self._load(request))

    def _load(self, request: EngineRequest) -> None:
        calls, trt = self._calls, self._trt
        plan = self._plan(request)
        self._runtime = calls.make("Runtime", lambda: trt.Runtime(calls.logger))
        self._runtime.error_recorder = calls.recorder
        engine = self._runtime.deserialize_cuda_engine(plan.read_bytes())
        self._engine = calls.need(engine, "deserialize_cuda_engine", "the plan is for another GPU or version")
        names = [self._engine.get_tensor_name(i) for i in range(self._engine.num_io_tensors)]
        mode = self._engine.get_tensor_mode
        self._inputs = [name for name in names if mode(name) == trt.TensorIOMode.INPUT]
        self._outputs = [name for name in names if mode(name) == trt.TensorIOMode.OUTPUT]
        self._check_names(request)
        self.preferred_rows = self._profile_rows(request.max_rows)
        settings = request.tensorrt
        graphs = settings.cuda_graphs if settings is not None else False
        self.streams = min(settings.streams if settings is not None else 1, self._engine.num_optimization_profiles)
        self._slots: queue.SimpleQueue[_Slot] = queue.SimpleQueue()
        made = [_Slot(self._engine, calls, self._cuda, i, records=graphs) for i in range(self.streams)]
        self._buffer_bytes = sum(slot.num_bytes for slot in made)
        for slot in made:
            self._slots.put(slot)

    def run(self, inputs: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        slot = self._slots.get()
        try:
            answer: dict[str, np.ndarray] = self._cuda.on_device(lambda: slot.run(inputs))
            return answer
        finally:
            self._slots.put(slot)

    def footprint_bytes(self) -> int | None:
        """Weights once; activations and buffers for each stream."""
        weights = int(self._engine.get_engine_stat(self._trt.EngineStat.TOTAL_WEIGHTS_SIZE))
        size = self._engine.get_device_memory_size_for_profile_v2
        return weights + self._buffer_bytes + sum(int(size(i)) for i in range(self.streams))

    def close(self) -> None:
        while not self._slots.empty():
            self._slots.get().close()
        self._engine = self._runtime = None
        self._cuda.release()

    def _plan(self, request: EngineRequest) -> Path:
        """The plan that was given, or the one that this node keeps or builds for a graph."""
        if request.path.suffix != ".onnx":
            return request.path
        try:
            build = load(BUILDER)
        except ImportError as error:
            raise MissingDependencyError(
                f"Cannot build an engine of {self._name}",
                found=f"the training room is not installed here: {error}",
                rule="only it builds engines",
                remedy="Install the whole distribution, or serve with ONNX Runtime (serve.engine: onnxruntime).",
            ) from None
        found: Path = build(request, self._cuda.gpu(), self._trt)
        return found

    def _check_names(self, request: EngineRequest) -> None:
        want = {t.name for t in request.signature.inputs}, {t.name for t in request.signature.outputs}
        if (set(self._inputs), set(self._outputs)) != want:
            raise BundleError(
                f"Cannot load {self._name}",
                found=f"the engine has inputs {sorted(self._inputs)} and outputs {sorted(self._outputs)}",
                rule=f"the manifest says inputs {sorted(want[0])} and outputs {sorted(want[1])}",
                remedy="Export the model again.",
            )

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


class _Slot:
    """One context, on a stream of its own, with buffers of its profile's largest shapes."""

    def __init__(self, engine: Any, calls: TensorRtCalls, cuda: Cuda, profile: int, *, records: bool) -> None:
        self._cuda, self._calls, self._records = cuda, calls, records
        self._context: Any = calls.need(
            engine.create_execution_context(), "create_execution_context", "GPU memory is too small"
        )
        self._stream, self._handle = cuda.stream()
        if engine.num_optimization_profiles > 1:
            taken = self._context.set_optimization_profile_async(profile, self._handle)
            calls.need(taken, "set_optimization_profile_async", f"profile {profile}")
            cuda.synchronize(self._stream)
        names = [engine.get_tensor_name(i) for i in range(engine.num_io_tensors)]
        is_input = {name: engine.get_tensor_mode(name) == calls.trt.TensorIOMode.INPUT for name in names}
        self._dtypes = {name: _dtype(name, engine.get_tensor_dtype(name)) for name in names}
        self._inputs = [name for name in names if is_input[name]]
        self._outputs = [name for name in names if not is_input[name]]
        self._buffers: dict[str, Any] = {}
        self.num_bytes = 0
        for name in self._inputs:  # largest shapes first: outputs' sizes follow from them
            most = tuple(int(size) for size in engine.get_tensor_profile_shape(name, profile)[2])
            calls.need(self._context.set_input_shape(name, most), "set_input_shape", f"{name} {most}")
            self._allocate(name, most)
        for name in self._outputs:
            self._allocate(name, tuple(int(size) for size in self._context.get_tensor_shape(name)))
        self._shapes: dict[str, tuple[int, ...]] = {}
        self._repeats = 0
        self._replay: Callable[[], None] | None = None

    def run(self, inputs: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        shapes = {name: inputs[name].shape for name in self._inputs}
        if shapes != self._shapes:
            self._change_shapes(shapes)
        for name in self._inputs:
            self._cuda.write(self._buffers[name], inputs[name].astype(self._dtypes[name], copy=False), self._stream)
        self._call()
        return {
            name: self._cuda.read(self._buffers[name], self._output_shapes[name], self._dtypes[name], self._stream)
            for name in self._outputs
        }

    def close(self) -> None:
        self._cuda.synchronize(self._stream)
        self._replay = None
        self._buffers.clear()
        self._context = None

    def _call(self) -> None:
        self._repeats += 1
        if self._replay is None and self._records and self._repeats == RECORD_AFTER:
            self._cuda.synchronize(self._stream)
            self._replay = self._cuda.record(self._enqueue, self._stream)
        if self._replay is not None:
            self._replay()
        else:
            self._enqueue()

    def _enqueue(self) -> None:
        self._need(self._context.execute_async_v3(self._handle), "execute_async_v3")

    def _change_shapes(self, shapes: dict[str, tuple[int, ...]]) -> None:
        self._replay, self._repeats, self._shapes = None, 0, {}
        for name, shape in shapes.items():
            self._need(self._context.set_input_shape(name, shape), "set_input_shape", f"input {name!r} of {shape}")
        if missing := self._context.infer_shapes():
            raise self._refused("infer_shapes", f"shapes are missing for {', '.join(missing)}")
        self._output_shapes = {
            name: tuple(int(size) for size in self._context.get_tensor_shape(name)) for name in self._outputs
        }
        self._shapes = shapes

    def _allocate(self, name: str, shape: tuple[int, ...]) -> None:
        if any(size < 0 for size in shape):
            raise self._calls.error("get_tensor_shape", f"the size of output '{name}' depends on values: {shape}")
        num_bytes = int(np.prod(shape)) * self._dtypes[name].itemsize
        self._buffers[name], address = self._cuda.buffer(num_bytes)
        self._calls.need(self._context.set_tensor_address(name, address), "set_tensor_address", name)
        self.num_bytes += num_bytes

    def _need(self, value: Any, call: str, hint: str = "") -> None:
        if not value:
            raise self._refused(call, hint)

    def _refused(self, call: str, hint: str) -> MantaError:
        told = self._calls.error(call, hint)
        return InferenceError("Cannot run the engine", found=f"TensorRT refused {call}: {told.found}")


def _dtype(name: str, kind: Any) -> np.dtype:
    word = str(kind).rpartition(".")[2]
    if word not in DTYPES:
        raise BundleError(
            "Cannot load the engine",
            found=f"tensor '{name}' has type {word}",
            rule=f"inputs and outputs have one of {', '.join(DTYPES)}",
            remedy="Keep the graph's inputs and outputs in float32 when it is converted.",
        )
    return DTYPES[word]


def _tensorrt(request: EngineRequest) -> Any:
    try:
        import tensorrt
    except ImportError as error:
        raise MissingDependencyError(
            f"Cannot load {request.path.name} with TensorRT",
            found=f"the module does not load: {error}",
            rule="it is optional",
            remedy=INSTALL,
        ) from None
    return tensorrt
