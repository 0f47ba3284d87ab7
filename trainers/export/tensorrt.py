"""ONNX -> TensorRT engine, on the node that will serve it. TensorRT 11 API; TensorRT 10 by the same names.

Invariant: an engine that `build_engine` returns has the requested precision, proved from the graph before and from the
inspector after; nothing is written here (engine_cache.py writes).

Covered: dynamic shapes by profiles, workspace limit, timing cache, error recorder, facts about memory. Which of it has
been verified on what is in docs/tensorrt.md. Not covered: plugins, DLA, weight streaming, refit.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from types import ModuleType
from typing import Any

from cluster.errors import MissingDependencyError
from cluster.probe.tensorrt_calls import INSTALL, TensorRtCalls, check_version
from trainers.export.precision import Precision, prove_engine, prove_graph

WORKSPACE_DEFAULT_BYTES = 1 << 30  # TensorRT's own default is the whole device, which leaves no room for neighbors
Shape = tuple[int, ...]


@dataclass(frozen=True)
class Profile:
    """Smallest, typical and largest shape of every dynamic input. One profile for each concurrent stream."""

    shapes: dict[str, tuple[Shape, Shape, Shape]]


@dataclass(frozen=True)
class BuildRequest:
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
    try:
        import tensorrt
    except ImportError as error:
        raise MissingDependencyError(
            "Cannot use TensorRT", found=f"the module does not load: {error}", rule="it is optional", remedy=INSTALL
        ) from error
    check_version(tensorrt)
    return tensorrt


def build_engine(request: BuildRequest, trt: Any) -> BuiltEngine:
    """Build on this thread's current GPU. Takes minutes for large graphs; blocks. Raises ModelError."""
    graph_facts = prove_graph(request.graph, request.precision)
    calls = TensorRtCalls(trt, attempted=f"Cannot build an engine of {request.graph.name}")
    builder = calls.make("Builder", lambda: trt.Builder(calls.logger))
    builder.error_recorder = calls.recorder
    network = calls.need(builder.create_network(network_flags(trt)), "create_network")
    _parse(calls, network, request.graph)
    config = _configure(calls, builder, network, request)
    plan = calls.need(builder.build_serialized_network(network, config), "build_serialized_network")
    data = bytes(plan)
    cache = config.get_timing_cache()
    serialized = cache.serialize() if cache is not None else None
    facts = {**engine_facts(data, trt, request.precision), "graph": graph_facts, "tensorrt": str(trt.__version__)}
    return BuiltEngine(data, bytes(serialized) if serialized is not None else b"", facts)


def engine_facts(plan: bytes, trt: Any, precision: Precision | None = None) -> dict[str, Any]:
    """Load an engine and read inputs, outputs, memory and precision. Raises ModelError for one that does not load."""
    calls = TensorRtCalls(trt, attempted="Cannot load an engine")
    runtime = calls.make("Runtime", lambda: trt.Runtime(calls.logger))
    runtime.error_recorder = calls.recorder
    engine = calls.need(
        runtime.deserialize_cuda_engine(plan), "deserialize_cuda_engine", "it was built for another GPU or version"
    )
    names = [engine.get_tensor_name(i) for i in range(engine.num_io_tensors)]
    profiles = engine.num_optimization_profiles
    facts: dict[str, Any] = {
        "inputs": [name for name in names if engine.get_tensor_mode(name) == trt.TensorIOMode.INPUT],
        "outputs": [name for name in names if engine.get_tensor_mode(name) == trt.TensorIOMode.OUTPUT],
        "num_layers": engine.num_layers,
        "num_profiles": profiles,
        "device_memory_bytes": int(engine.device_memory_size_v2),
        "device_memory_bytes_by_profile": [
            int(engine.get_device_memory_size_for_profile_v2(i)) for i in range(profiles)
        ],
        "weights_bytes": int(engine.get_engine_stat(trt.EngineStat.TOTAL_WEIGHTS_SIZE)),
    }
    if precision is not None:
        inspector = calls.need(engine.create_engine_inspector(), "create_engine_inspector")
        text = inspector.get_engine_information(trt.LayerInformationFormat.JSON)
        facts["precision"] = prove_engine(text, precision)
    return facts


def footprint_bytes(facts: dict[str, Any]) -> int:
    """Device memory of a loaded engine by its facts: weights once, activations once for each profile's context."""
    return int(facts["weights_bytes"]) + sum(int(size) for size in facts["device_memory_bytes_by_profile"])


def network_flags(trt: Any) -> int:
    """Strongly typed always: the graph decides. In 11 it is the only mode and its flag's number has changed."""
    if check_version(trt) >= 11:
        return 0
    return 1 << int(trt.NetworkDefinitionCreationFlag.STRONGLY_TYPED)


def _parse(calls: TensorRtCalls, network: Any, graph: Path) -> None:
    """Parse by path (external data lies beside the file); every parser error with its node."""
    parser = calls.make("OnnxParser", lambda: calls.trt.OnnxParser(network, calls.logger))
    if parser.parse_from_file(str(graph)):
        return
    errors = [parser.get_error(i) for i in range(parser.num_errors)]
    listed = "; ".join(f"{one.node_operator()} '{one.node_name()}': {one.desc()} ({one.code()})" for one in errors)
    raise calls.error("OnnxParser.parse_from_file", listed)


def _configure(calls: TensorRtCalls, builder: Any, network: Any, request: BuildRequest) -> Any:
    trt = calls.trt
    config = calls.need(builder.create_builder_config(), "create_builder_config")
    config.set_memory_pool_limit(trt.MemoryPoolType.WORKSPACE, request.workspace_bytes)
    config.builder_optimization_level = request.optimization_level
    config.profiling_verbosity = trt.ProfilingVerbosity.DETAILED  # the inspector names types only then
    if request.precision == "fp32":
        config.clear_flag(trt.BuilderFlag.TF32)  # TF32 keeps 10 bits of mantissa: not what fp32 means here
    for i, profile in enumerate(request.profiles):
        _add_profile(calls, builder, config, network, profile, i)
    if not _attach_timing_cache(calls, config, request.timing_cache):  # of another GPU or version: start an empty one
        calls.need(_attach_timing_cache(calls, config, b""), "set_timing_cache")
    return config


def _attach_timing_cache(calls: TensorRtCalls, config: Any, content: bytes) -> bool:
    cache = config.create_timing_cache(content)
    return bool(cache is not None and config.set_timing_cache(cache, False))


def _add_profile(calls: TensorRtCalls, builder: Any, config: Any, network: Any, profile: Profile, index: int) -> None:
    made = calls.need(builder.create_optimization_profile(), "create_optimization_profile")
    for i in range(network.num_inputs):
        tensor = network.get_input(i)
        if -1 not in tuple(tensor.shape):
            continue
        if tensor.name not in profile.shapes:
            raise calls.error("set_shape", f"profile {index} has no shapes for dynamic input '{tensor.name}'")
        least, typical, most = profile.shapes[tensor.name]
        made.set_shape(tensor.name, least, typical, most)
    if not made:  # its truth is TensorRT's own check of the shapes
        raise calls.error("IOptimizationProfile", f"profile {index} is not valid: {profile.shapes}")
    calls.need(config.add_optimization_profile(made), "add_optimization_profile", f"profile {index}")
