"""ONNX -> TensorRT engine, on the node that will serve it. TensorRT 11 API; TensorRT 10 by the same names.

Nearly everything in TensorRT signals failure by None or False; here every such call ends in one error with the logger's
lines, the recorder's codes and the node or tensor it was about.

Invariant: an engine that `build_engine` returns has the requested precision, proved from the graph before and from the
inspector after; nothing is written here (engine_cache.py writes).

Covered: dynamic shapes by profiles, workspace limit, timing cache, error recorder, facts about memory. Verified on a
machine without a GPU up to level L3 (docs/tensorrt.md). Not covered: plugins, DLA, weight streaming, refit.
"""

from __future__ import annotations

import threading
from dataclasses import dataclass, field
from pathlib import Path
from types import ModuleType
from typing import Any

from cluster.errors import MissingDependencyError, ModelError
from trainers.export.precision import Precision, prove_engine, prove_graph

MAJORS = (10, 11)
LOG_LINES_MAX = 200
ERROR_LINES_SHOWN = 6
WORKSPACE_DEFAULT_BYTES = 1 << 30  # TensorRT's own default is the whole device, which leaves no room for neighbors


@dataclass(frozen=True)
class Profile:
    """Smallest, typical and largest shape of every dynamic input. One profile for each concurrent stream."""

    shapes: dict[str, tuple[tuple[int, ...], tuple[int, ...], tuple[int, ...]]]


@dataclass(frozen=True)
class EngineRequest:
    """What to build."""

    graph: Path
    precision: Precision
    profiles: tuple[Profile, ...]
    workspace_bytes: int = WORKSPACE_DEFAULT_BYTES
    optimization_level: int = 3
    timing_cache: bytes = b""


@dataclass(frozen=True)
class BuiltEngine:
    """A serialized engine and what was found about it."""

    plan: bytes
    timing_cache: bytes
    facts: dict[str, Any] = field(default_factory=dict)


def load_tensorrt() -> ModuleType:
    """The `tensorrt` module. Raises MissingDependencyError when absent or of another major version."""
    remedy = "Install the extra: pip install 'manta-ml[gpu]' (NVIDIA's own index has the libraries)."
    try:
        import tensorrt
    except ImportError as error:
        raise MissingDependencyError(
            "Cannot use TensorRT", found=f"the module does not load: {error}", rule="it is optional", remedy=remedy
        ) from error
    check_version(tensorrt)
    return tensorrt


def check_version(trt: ModuleType) -> int:
    """The major version. Raises MissingDependencyError for one whose API differs."""
    major = int(str(trt.__version__).split(".")[0])
    if major not in MAJORS:
        raise MissingDependencyError(
            "Cannot use TensorRT",
            found=f"version {trt.__version__}",
            rule=f"major versions {', '.join(map(str, MAJORS))} are supported",
            remedy="Install the extra: pip install 'manta-ml[gpu]'.",
        )
    return major


def build_engine(request: EngineRequest, trt: ModuleType) -> BuiltEngine:
    """Build on this node's GPU. Takes minutes for large graphs; blocks. Raises ModelError."""
    graph_facts = prove_graph(request.graph, request.precision)
    session = _Session(trt)
    builder = session.need(trt.Builder(session.logger), "Builder")
    builder.error_recorder = session.recorder
    network = session.need(builder.create_network(network_flags(trt)), "create_network")
    _parse(session, network, request.graph)
    config = _configure(session, builder, network, request)
    plan = session.need(builder.build_serialized_network(network, config), "build_serialized_network")
    cache = config.get_timing_cache()
    data = bytes(plan)
    facts = {**engine_facts(data, trt, request.precision), "graph": graph_facts, "trt": str(trt.__version__)}
    return BuiltEngine(data, bytes(cache.serialize()) if cache else b"", facts)


def engine_facts(plan: bytes, trt: ModuleType, precision: Precision | None = None) -> dict[str, Any]:
    """Load an engine and read inputs, outputs, memory and precision. Raises ModelError for one that does not load."""
    session = _Session(trt)
    runtime = session.need(trt.Runtime(session.logger), "Runtime")
    runtime.error_recorder = session.recorder
    engine = session.need(
        runtime.deserialize_cuda_engine(plan), "deserialize_cuda_engine", "it was built for another GPU or version"
    )
    names = [engine.get_tensor_name(i) for i in range(engine.num_io_tensors)]
    profiles = engine.num_optimization_profiles
    facts: dict[str, Any] = {
        "inputs": [name for name in names if engine.get_tensor_mode(name) == trt.TensorIOMode.INPUT],
        "outputs": [name for name in names if engine.get_tensor_mode(name) == trt.TensorIOMode.OUTPUT],
        "num_layers": engine.num_layers,
        "device_memory_bytes": int(engine.device_memory_size_v2),
        "device_memory_bytes_by_profile": [
            int(engine.get_device_memory_size_for_profile_v2(i)) for i in range(profiles)
        ],
        "weights_bytes": int(engine.get_engine_stat(trt.EngineStat.TOTAL_WEIGHTS_SIZE)),
    }
    if precision is not None:
        inspector = session.need(engine.create_engine_inspector(), "create_engine_inspector")
        text = inspector.get_engine_information(trt.LayerInformationFormat.JSON)
        facts["layer_types"] = prove_engine(text, precision)
    return facts


def network_flags(trt: ModuleType) -> int:
    """Strongly typed always: the graph decides. In 11 it is the only mode and its flag's number has changed."""
    if check_version(trt) >= 11:
        return 0
    return 1 << int(trt.NetworkDefinitionCreationFlag.STRONGLY_TYPED)


class _Session:
    """Logger and recorder of one build or load, and the one way in which its calls fail."""

    def __init__(self, trt: ModuleType) -> None:
        self.trt = trt
        self.logger = make_logger(trt)
        self.recorder = make_recorder(trt)

    def need(self, value: Any, call: str, hint: str = "") -> Any:
        """`value` unless it is None, False or -1, which are TensorRT's ways to say no."""
        if value is None or value is False or (isinstance(value, int) and value is not True and value < 0):
            raise self.error(call, hint)
        return value

    def error(self, call: str, hint: str = "") -> ModelError:
        lines = self.logger.lines[-ERROR_LINES_SHOWN:]
        codes = [f"{code}: {text}" for code, text in self.recorder.errors]
        found = "; ".join((*([hint] if hint else []), *codes, *lines)) or "TensorRT gave no reason"
        return ModelError(
            f"Cannot use TensorRT {self.trt.__version__}: {call} failed",
            found=found,
            rule="engines are built for one GPU, one TensorRT version and one set of shapes",
            remedy="Build the engine again on this node, or serve the ONNX variant.",
        )


def make_logger(trt: ModuleType) -> Any:
    """An ILogger that keeps warnings and errors."""

    class Lines(trt.ILogger):  # type: ignore[name-defined]
        def __init__(self) -> None:
            trt.ILogger.__init__(self)
            self.lines: list[str] = []

        def log(self, severity: Any, text: str) -> None:
            if severity <= trt.ILogger.Severity.WARNING and len(self.lines) < LOG_LINES_MAX:
                self.lines.append(text.strip())

    return Lines()


def make_recorder(trt: ModuleType) -> Any:
    """A thread-safe IErrorRecorder: TensorRT reports from its own threads."""

    class Errors(trt.IErrorRecorder):  # type: ignore[name-defined]
        def __init__(self) -> None:
            trt.IErrorRecorder.__init__(self)
            self.errors: list[tuple[Any, str]] = []
            self._lock = threading.Lock()

        def clear(self) -> None:
            with self._lock:
                self.errors.clear()

        def num_errors(self) -> int:
            return len(self.errors)

        def get_error_code(self, index: int) -> Any:
            return self.errors[index][0]

        def get_error_desc(self, index: int) -> str:
            return self.errors[index][1]

        def has_overflowed(self) -> bool:
            return False

        def report_error(self, code: Any, text: str) -> bool:
            with self._lock:
                self.errors.append((code, text))
            return True

    return Errors()


def _parse(session: _Session, network: Any, graph: Path) -> None:
    """Parse by path (external data lies beside the file); every parser error with its node."""
    parser = session.need(session.trt.OnnxParser(network, session.logger), "OnnxParser")
    if parser.parse_from_file(str(graph)):
        return
    errors = [parser.get_error(i) for i in range(parser.num_errors)]
    listed = "; ".join(f"{one.node_operator()} '{one.node_name()}': {one.desc()} ({one.code()})" for one in errors)
    raise session.error("OnnxParser.parse_from_file", listed)


def _configure(session: _Session, builder: Any, network: Any, request: EngineRequest) -> Any:
    trt = session.trt
    config = session.need(builder.create_builder_config(), "create_builder_config")
    config.set_memory_pool_limit(trt.MemoryPoolType.WORKSPACE, request.workspace_bytes)
    config.builder_optimization_level = request.optimization_level
    config.profiling_verbosity = trt.ProfilingVerbosity.DETAILED  # the inspector names types only then
    if request.precision == "fp32":
        config.clear_flag(trt.BuilderFlag.TF32)  # TF32 keeps 10 bits of mantissa: not what fp32 means here
    for i, profile in enumerate(request.profiles):
        _add_profile(session, builder, config, network, profile, i)
    cache = session.need(config.create_timing_cache(request.timing_cache), "create_timing_cache")
    session.need(config.set_timing_cache(cache, False), "set_timing_cache", "the cache is of another GPU or version")
    return config


def _add_profile(session: _Session, builder: Any, config: Any, network: Any, profile: Profile, index: int) -> None:
    made = session.need(builder.create_optimization_profile(), "create_optimization_profile")
    for i in range(network.num_inputs):
        tensor = network.get_input(i)
        if -1 not in tuple(tensor.shape):
            continue
        if tensor.name not in profile.shapes:
            raise session.error("set_shape", f"profile {index} has no shapes for dynamic input '{tensor.name}'")
        least, typical, most = profile.shapes[tensor.name]
        made.set_shape(tensor.name, least, typical, most)
    session.need(bool(made), "IOptimizationProfile", f"profile {index} is not valid: {profile.shapes}")
    session.need(config.add_optimization_profile(made), "add_optimization_profile", f"profile {index}")
