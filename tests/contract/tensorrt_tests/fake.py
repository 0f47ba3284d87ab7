"""Level L3: a TensorRT made from the snapshot of the real bindings, whose engines run in ONNX Runtime on host memory.

Names, enum values, arity and argument types are those of the snapshot (level L1 proves it equal to the real bindings):
an unknown name raises AttributeError, a wrong argument TypeError. What the real library would do is played by `Plays`.

Proves: control flow, refusals, profiles, cache keys, cleanup. Does not prove: that a real builder accepts a graph.
"""

from __future__ import annotations

import base64
import ctypes
import json
from collections.abc import Callable
from enum import IntEnum
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import onnx
import onnxruntime

from tests.contract.tensorrt_tests.signature import accepts

ENGINE_WORDS = {1: "Float", 10: "Half", 16: "BFloat16", 3: "Int8"}  # onnx element type -> the inspector's word
MULTIPLYING = {"Conv": "Convolution", "Gemm": "MatrixMultiply", "MatMul": "MatrixMultiply"}


class Fake:
    """The module. Attributes are the snapshot's names; `refuse` and `plays` belong to the test."""

    def __init__(self, snapshot: dict[str, Any], *, gpu: str = "fake GPU") -> None:
        self._snapshot = snapshot
        self._made: dict[str, Any] = {}
        self.__version__ = snapshot["version"]
        self.gpu = gpu
        self.refuse: dict[str, Any] = {}
        """`Class.method` or `Class` -> what it returns instead; a factory that gives None raises as pybind11 does."""
        self.loses_precision = False
        """Builds FP32 whatever the graph says, without a word."""
        self.builds = 0
        self.calls: list[str] = []

    def __getattr__(self, name: str) -> Any:
        if name.startswith("_") or name not in self._snapshot["names"]:
            raise AttributeError(f"TensorRT {self._snapshot['version']} has no {name}")
        if name not in self._made:
            self._made[name] = self._make(name)
        return self._made[name]

    def _make(self, name: str) -> Any:
        if name in self._snapshot["enums"]:
            return _enum(name, self._snapshot["enums"][name])
        if name not in self._snapshot["classes"]:
            raise AttributeError(f"{name} is not in the snapshot's classes: add it to describe.CLASSES")
        made = _class(self, name, self._snapshot["classes"][name])
        if name == "ILogger":
            made.Severity = _enum("Severity", self._snapshot["enums"]["ILogger.Severity"])
        return made


def _enum(name: str, members: dict[str, int]) -> Any:
    made = IntEnum(name, members)  # type: ignore[misc]
    made.__str__ = lambda self: f"{type(self).__name__}.{self.name}"  # type: ignore[assignment]
    return made


def _class(trt: Fake, name: str, members: dict[str, list[str]]) -> Any:
    """A class with exactly these members. What they do is in `PLAYS[name]`; user classes may subclass it."""

    def init(self: Any, *arguments: Any) -> None:
        if members.get("__init__") and not accepts(trt, members["__init__"], arguments):
            raise TypeError(f"{name}(): incompatible constructor arguments {arguments}; {members['__init__']}")
        if name in trt.refuse:
            raise TypeError("pybind11::init(): factory function returned nullptr")
        object.__setattr__(self, "_play", PLAYS[name](trt, *arguments) if name in PLAYS else None)

    def set_attribute(self: Any, key: str, value: Any) -> None:
        if type(self) is made and key not in members:
            raise AttributeError(f"TensorRT's {name} has no {key}")
        object.__setattr__(self, key, value) if type(self) is not made else setattr(self._play, key, value)

    body: dict[str, Any] = {"__init__": init, "__setattr__": set_attribute}
    for member, signatures in members.items():
        if not member.startswith("__"):
            body[member] = _method(trt, name, member, signatures) if signatures else _property(name, member)
    if "__bool__" in members:
        body["__bool__"] = _method(trt, name, "__bool__", members["__bool__"])
    if name == "IHostMemory":
        body["__bytes__"] = lambda self: self._play.content  # the real one has the buffer protocol
    made = type(name, (), body)
    return made


def _method(trt: Fake, cls: str, name: str, signatures: list[str]) -> Callable[..., Any]:
    def method(self: Any, *arguments: Any) -> Any:
        if not accepts(trt, signatures, arguments):
            raise TypeError(f"{name}(): incompatible function arguments {arguments}; supported: {signatures}")
        trt.calls.append(f"{cls}.{name}")
        if f"{cls}.{name}" in trt.refuse:
            return trt.refuse[f"{cls}.{name}"]
        return getattr(self._play, "truth" if name == "__bool__" else name)(*arguments)

    return method


def _property(cls: str, name: str) -> property:
    return property(lambda self: getattr(self._play, name))


def wrap(trt: Fake, cls: str, play: Any) -> Any:
    """An object of a class of the snapshot that plays `play`."""
    made = object.__new__(getattr(trt, cls))
    object.__setattr__(made, "_play", play)
    return made


class _Builder:
    def __init__(self, trt: Fake, logger: Any) -> None:
        self.trt, self.logger, self.error_recorder = trt, logger, None

    def create_network(self, flags: int = 0) -> Any:
        return wrap(self.trt, "INetworkDefinition", _Network(self.trt, flags))

    def create_builder_config(self) -> Any:
        return wrap(self.trt, "IBuilderConfig", _Config(self.trt))

    def create_optimization_profile(self) -> Any:
        return wrap(self.trt, "IOptimizationProfile", _Profile())

    def build_serialized_network(self, network: Any, config: Any) -> Any:
        self.trt.builds += 1
        play = network._play
        content = {
            "graph": base64.b64encode(Path(play.path).read_bytes()).decode(),
            "profiles": [profile._play.shapes for profile in config._play.profiles],
            "version": self.trt.__version__,
            "gpu": self.trt.gpu,
            "flags": play.flags,
            "detailed": config._play.profiling_verbosity == self.trt.ProfilingVerbosity.DETAILED,
            "lost": self.trt.loses_precision,
        }
        return wrap(self.trt, "IHostMemory", SimpleNamespace(content=json.dumps(content).encode()))


class _Network:
    def __init__(self, trt: Fake, flags: int) -> None:
        self.trt, self.flags, self.path = trt, flags, ""
        self.model: onnx.ModelProto | None = None

    @property
    def num_inputs(self) -> int:
        return len(self.model.graph.input) if self.model else 0

    def get_input(self, index: int) -> Any:
        assert self.model is not None
        value = self.model.graph.input[index]
        shape = tuple(dim.dim_value or -1 for dim in value.type.tensor_type.shape.dim)
        return wrap(self.trt, "ITensor", SimpleNamespace(name=value.name, shape=shape))


class _Parser:
    def __init__(self, trt: Fake, network: Any, logger: Any) -> None:
        self.trt, self.network = trt, network
        self.num_errors = 0

    def parse_from_file(self, path: str) -> bool:
        try:
            self.network._play.model = onnx.load(path)
        except Exception:  # noqa: BLE001 - any unreadable file is a parser error
            self.num_errors = 1
            return False
        self.network._play.path = path
        return True

    def get_error(self, index: int) -> Any:
        code = self.trt.ErrorCode.UNSUPPORTED_NODE
        play = SimpleNamespace(
            code=lambda: code, desc=lambda: "no importer", node_name=lambda: "n0", node_operator=lambda: "Odd"
        )
        return wrap(self.trt, "ParserError", play)


class _Profile:
    def __init__(self) -> None:
        self.shapes: dict[str, list[list[int]]] = {}

    def set_shape(self, name: str, *shapes: tuple[int, ...]) -> None:
        self.shapes[name] = [list(shape) for shape in shapes]

    def truth(self) -> bool:
        return all(a <= b <= c for each in self.shapes.values() for a, b, c in zip(*each, strict=True))


class _Config:
    def __init__(self, trt: Fake) -> None:
        self.trt = trt
        self.profiles: list[Any] = []
        self.flags_cleared: list[Any] = []
        self.limits: dict[Any, int] = {}
        self.builder_optimization_level, self.profiling_verbosity = 3, trt.ProfilingVerbosity.LAYER_NAMES_ONLY
        self.cache: Any = None

    def set_memory_pool_limit(self, pool: Any, size: int) -> None:
        self.limits[pool] = size

    def clear_flag(self, flag: Any) -> None:
        self.flags_cleared.append(flag)

    def add_optimization_profile(self, profile: Any) -> int:
        self.profiles.append(profile)
        return len(self.profiles) - 1

    def create_timing_cache(self, content: bytes) -> Any:
        return wrap(self.trt, "ITimingCache", _TimingCache(self.trt, content))

    def set_timing_cache(self, cache: Any, ignore_mismatch: bool) -> bool:
        foreign = bool(cache._play.content) and not cache._play.content.startswith(self.trt.gpu.encode())
        if not foreign:
            self.cache = cache
        return not foreign

    def get_timing_cache(self) -> Any:
        return self.cache


class _TimingCache:
    def __init__(self, trt: Fake, content: bytes) -> None:
        self.trt, self.content = trt, content

    def serialize(self) -> Any:
        return wrap(self.trt, "IHostMemory", SimpleNamespace(content=self.trt.gpu.encode() + b" times"))


class _Runtime:
    def __init__(self, trt: Fake, logger: Any) -> None:
        self.trt, self.logger, self.error_recorder = trt, logger, None

    def deserialize_cuda_engine(self, content: bytes) -> Any:
        try:
            plan = json.loads(content)
        except ValueError:
            return None
        if (plan["version"], plan["gpu"]) != (self.trt.__version__, self.trt.gpu):
            self.logger.log(self.trt.ILogger.Severity.ERROR, "The engine plan file is not compatible")
            return None
        return wrap(self.trt, "ICudaEngine", _Engine(self.trt, plan))


class _Engine:
    def __init__(self, trt: Fake, plan: dict[str, Any]) -> None:
        self.trt, self.plan = trt, plan
        self.graph = base64.b64decode(plan["graph"])
        self.model = onnx.load_from_string(self.graph)
        self.num_inputs = len(self.model.graph.input)
        self.values = [*self.model.graph.input, *self.model.graph.output]
        self.num_io_tensors = len(self.values)
        self.num_layers = len(self.model.graph.node)
        self.num_optimization_profiles = max(1, len(plan["profiles"]))
        self.device_memory_size_v2 = 1000
        self.weights = sum(int(np.prod(tensor.dims)) * 4 for tensor in self.model.graph.initializer)

    def get_tensor_name(self, index: int) -> str:
        return str(self.values[index].name)

    def get_tensor_mode(self, name: str) -> Any:
        inputs = [value.name for value in self.model.graph.input]
        return self.trt.TensorIOMode.INPUT if name in inputs else self.trt.TensorIOMode.OUTPUT

    def get_tensor_dtype(self, name: str) -> Any:
        kind = next(value.type.tensor_type.elem_type for value in self.values if value.name == name)
        word = {1: "FLOAT", 10: "HALF", 16: "BF16", 6: "INT32", 7: "INT64", 3: "INT8", 9: "BOOL", 2: "UINT8"}[kind]
        return self.trt.DataType[word]

    def get_tensor_profile_shape(self, name: str, profile: int) -> list[list[int]]:
        return self.plan["profiles"][profile][name]  # type: ignore[no-any-return]

    def get_device_memory_size_for_profile_v2(self, profile: int) -> int:
        return 1000 + profile

    def get_engine_stat(self, stat: Any) -> int:
        return self.weights

    def create_engine_inspector(self) -> Any:
        return wrap(self.trt, "EngineInspector", self)

    def get_engine_information(self, kind: Any) -> str:
        assert kind == self.trt.LayerInformationFormat.JSON
        nodes = self.model.graph.node
        if not self.plan["detailed"]:
            return json.dumps({"Layers": [node.name or node.op_type for node in nodes]})
        kinds = {tensor.name: tensor.data_type for tensor in self.model.graph.initializer}
        layers = []
        for node in nodes:
            word = ENGINE_WORDS.get(kinds.get(node.input[1], 1), "Float") if len(node.input) > 1 else "Float"
            word = "Float" if self.plan["lost"] else word
            layers.append(
                {
                    "Name": node.name,
                    "LayerType": node.op_type,
                    "ParameterType": MULTIPLYING.get(node.op_type, node.op_type),
                    "Inputs": [{"Name": node.input[0], "Format/Datatype": f"Row major linear {word} format"}],
                }
            )
        return json.dumps({"Layers": layers})

    def create_execution_context(self) -> Any:
        return wrap(self.trt, "IExecutionContext", _Context(self))


class _Context:
    """Runs the graph in ONNX Runtime, between the host addresses that it was given."""

    def __init__(self, engine: _Engine) -> None:
        self.engine, self.profile = engine, 0
        self.shapes: dict[str, tuple[int, ...]] = {}
        self.addresses: dict[str, int] = {}
        self.session = onnxruntime.InferenceSession(engine.graph, providers=["CPUExecutionProvider"])

    def set_optimization_profile_async(self, index: int, stream: int) -> bool:
        self.profile = index
        return index < self.engine.num_optimization_profiles

    def set_input_shape(self, name: str, shape: tuple[int, ...]) -> bool:
        least, _, most = self.engine.get_tensor_profile_shape(name, self.profile)
        self.shapes[name] = tuple(shape)
        return all(low <= size <= high for low, size, high in zip(least, shape, most, strict=True))

    def infer_shapes(self) -> list[str]:
        return [value.name for value in self.engine.model.graph.input if value.name not in self.shapes]

    def get_tensor_shape(self, name: str) -> tuple[int, ...]:
        value = next(value for value in self.engine.values if value.name == name)
        rows = next(iter(self.shapes.values()))[0]
        return tuple(dim.dim_value or rows for dim in value.type.tensor_type.shape.dim)

    def set_tensor_address(self, name: str, address: int) -> bool:
        self.addresses[name] = address
        return True

    def execute_async_v3(self, stream: int) -> bool:
        assert stream != 0, "the default stream adds synchronizations"
        feed = {value.name: self._array(value.name) for value in self.engine.model.graph.input}
        outputs = [value.name for value in self.engine.model.graph.output]
        for name, found in zip(outputs, self.session.run(outputs, feed), strict=True):
            self._array(name)[...] = found
        return True

    def _array(self, name: str) -> np.ndarray:
        word = str(self.engine.get_tensor_dtype(name)).rpartition(".")[2]
        dtype = {"FLOAT": np.float32, "HALF": np.float16, "INT32": np.int32, "INT64": np.int64}[word]
        shape = self.shapes.get(name) or self.get_tensor_shape(name)
        size = int(np.prod(shape)) * np.dtype(dtype).itemsize
        return np.frombuffer((ctypes.c_char * size).from_address(self.addresses[name]), dtype).reshape(shape)


PLAYS: dict[str, Callable[..., Any]] = {"Builder": _Builder, "OnnxParser": _Parser, "Runtime": _Runtime}
