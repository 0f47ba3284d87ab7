"""Level L3: building, caching, loading and running, on a TensorRT made from the snapshot of the real bindings."""

from __future__ import annotations

import sys
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from onnx import TensorProto

from cluster.bundle.manifest import Variant
from cluster.bundle.signature import TensorSignature, TensorSpec
from cluster.errors import BundleError, InferenceError, MissingDependencyError, ModelError
from cluster.spec.serve import BatchingSpec, ServeSpec, TensorRtSpec
from serve.engines import make_engine
from serve.engines.engine import EngineRequest
from serve.engines.tensorrt import RECORD_AFTER, TensorRtEngine
from tests.contract.engine_conformance import EngineConformance
from tests.contract.tensorrt_tests.bindings import VERSIONS, snapshot
from tests.contract.tensorrt_tests.fake import Fake
from tests.contract.tensorrt_tests.graphs import write_linear
from tests.contract.tensorrt_tests.memory import HostCuda
from trainers.export.engine_memory import Node, with_footprint
from trainers.export.node_engine import EngineWish, NodeGpu, make_profiles, node_engine
from trainers.export.tensorrt import BuildRequest, Profile, build_engine, engine_facts, footprint_bytes, load_tensorrt

SIGNATURE = TensorSignature(
    inputs=(TensorSpec(name="x", datatype="FP32", shape=(-1, 3)),),
    outputs=(TensorSpec(name="logits", datatype="FP32", shape=(-1, 2)),),
)
GPU = NodeGpu("fake GPU", "9.0")
pytestmark = pytest.mark.tensorrt_level("L3")


@pytest.fixture(params=VERSIONS)
def trt(request: pytest.FixtureRequest) -> Fake:
    return Fake(snapshot(request.param))


@pytest.fixture
def graph(tmp_path: Path) -> Path:
    return write_linear(tmp_path / "model.onnx")


def build_request(graph: Path, **changes: Any) -> BuildRequest:
    profile = Profile({"x": ((1, 3), (4, 3), (8, 3))})
    return replace(BuildRequest(graph, "fp32", (profile, profile)), **changes)


def engine_request(graph: Path, cache: Path, **changes: Any) -> EngineRequest:
    settings = TensorRtSpec(cache=str(cache), **changes)
    return EngineRequest(graph, SIGNATURE, max_rows=8, device="cuda:0", tensorrt=settings)


@pytest.mark.parametrize("version", VERSIONS)
class TestConformance(EngineConformance):
    @pytest.fixture
    def made(self, tmp_path: Path, version: str) -> object:
        graph = write_linear(tmp_path / "model.onnx")
        trt = Fake(snapshot(version))
        engine = TensorRtEngine(engine_request(graph, tmp_path / "cache"), trt=trt, cuda=HostCuda())
        yield engine, SIGNATURE
        engine.close()


def test_a_built_engine_tells_its_memory_and_its_proved_precision(trt: Fake, graph: Path) -> None:
    built = build_engine(build_request(graph), trt)
    assert built.facts["inputs"] == ["x"]
    assert built.facts["outputs"] == ["logits"]
    assert built.facts["device_memory_bytes_by_profile"] == [1000, 1001]
    assert built.facts["precision"] == {"layers": 1, "multiplying": 1, "proved": 1, "reads": {"fp32": 1}}
    assert footprint_bytes(built.facts) == built.facts["weights_bytes"] + 2001
    assert built.timing_cache == b"fake GPU times"


def test_the_network_is_strongly_typed_in_both_majors(trt: Fake, graph: Path) -> None:
    import json

    flags = json.loads(build_engine(build_request(graph), trt).plan)["flags"]
    assert flags == (0 if trt.__version__.startswith("11") else 2)


@pytest.mark.parametrize(
    ("call", "answer", "told"),
    [
        ("Builder", None, "Builder failed"),
        ("Builder.create_network", None, "create_network failed"),
        ("OnnxParser", None, "OnnxParser failed"),
        ("Builder.create_builder_config", None, "create_builder_config failed"),
        ("Builder.create_optimization_profile", None, "create_optimization_profile failed"),
        ("IOptimizationProfile.__bool__", False, "profile 0 is not valid"),
        ("IBuilderConfig.add_optimization_profile", -1, "add_optimization_profile failed"),
        ("IBuilderConfig.set_timing_cache", False, "set_timing_cache failed"),
        ("Builder.build_serialized_network", None, "build_serialized_network failed"),
        ("Runtime", None, "Runtime failed"),
        ("Runtime.deserialize_cuda_engine", None, "another GPU or version"),
        ("ICudaEngine.create_engine_inspector", None, "create_engine_inspector failed"),
    ],
)
def test_every_way_in_which_tensorrt_says_no_is_one_error(
    trt: Fake, graph: Path, call: str, answer: object, told: str
) -> None:
    trt.refuse[call] = answer
    with pytest.raises(ModelError, match=told) as caught:
        build_engine(build_request(graph), trt)
    assert trt.__version__ in str(caught.value)


def test_a_parser_error_names_the_node(trt: Fake, graph: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tests.contract.tensorrt_tests.fake.onnx.load", lambda path: 1 / 0)
    monkeypatch.setattr("trainers.export.tensorrt.prove_graph", lambda path, precision: {})
    with pytest.raises(ModelError, match=r"Odd 'n0': no importer \(ErrorCode\.UNSUPPORTED_NODE\)"):
        build_engine(build_request(graph), trt)


def test_a_builder_that_loses_the_precision_in_silence_is_found_out(trt: Fake, tmp_path: Path) -> None:
    """The regression of TensorRT 11: fp16 is asked for, the exit code is 0 and the engine is FP32."""
    half = write_linear(tmp_path / "half.onnx", element=TensorProto.FLOAT16)
    assert build_engine(build_request(half, precision="fp16"), trt).facts["precision"]["reads"] == {"fp16": 1}
    trt.loses_precision = True
    with pytest.raises(ModelError, match="Cannot use the engine as fp16"):
        build_engine(build_request(half, precision="fp16"), trt)


def test_a_float_graph_is_refused_as_fp16_before_anything_is_built(trt: Fake, graph: Path) -> None:
    with pytest.raises(ModelError, match="Cannot build a fp16 engine"):
        build_engine(build_request(graph, precision="fp16"), trt)
    assert trt.builds == 0


def test_a_dynamic_input_without_a_profile_is_named(trt: Fake, graph: Path) -> None:
    with pytest.raises(ModelError, match="no shapes for dynamic input 'x'"):
        build_engine(build_request(graph, profiles=(Profile({}),)), trt)


def test_a_timing_cache_of_another_gpu_is_replaced(trt: Fake, graph: Path) -> None:
    assert build_engine(build_request(graph, timing_cache=b"other GPU times"), trt).plan


def test_an_engine_of_another_gpu_or_version_is_refused(trt: Fake, graph: Path) -> None:
    plan = build_engine(build_request(graph), trt).plan
    assert engine_facts(plan, trt)["num_profiles"] == 2
    other = Fake(snapshot(trt.__version__), gpu="another GPU")
    with pytest.raises(ModelError, match=r"another GPU or version.*not compatible"):
        engine_facts(plan, other)
    (newer,) = (version for version in VERSIONS if version != trt.__version__)
    with pytest.raises(ModelError, match="another GPU or version"):
        engine_facts(plan, Fake(snapshot(newer)))


def test_engines_are_kept_by_all_that_they_depend_on(trt: Fake, graph: Path, tmp_path: Path) -> None:
    settings = TensorRtSpec(cache=str(tmp_path / "cache"))
    wish = EngineWish(graph, "fp32", SIGNATURE.inputs, max_rows=8)
    first, facts = node_engine(wish, settings, GPU, trt)
    again, _ = node_engine(wish, settings, GPU, trt)
    assert (first, trt.builds) == (again, 1)
    assert facts["inputs"] == ["x"]
    others: list[Callable[[], Any]] = [
        lambda: node_engine(replace(wish, max_rows=16), settings, GPU, trt),
        lambda: node_engine(wish, settings.model_copy(update={"optimization_level": 5}), GPU, trt),
        lambda: node_engine(wish, settings.model_copy(update={"workspace_bytes": 1 << 21}), GPU, trt),
        lambda: node_engine(wish, settings.model_copy(update={"streams": 2}), GPU, trt),
        lambda: node_engine(wish, settings, NodeGpu("fake GPU", "8.0"), trt),
        lambda: node_engine(wish, settings, NodeGpu("fake GPU 2", "9.0"), trt),
    ]
    for number, other in enumerate(others, start=2):
        assert other()[0] != first
        assert trt.builds == number
    write_linear(graph, seed=1)
    assert node_engine(wish, settings, GPU, trt)[0] != first


def test_a_changed_or_torn_engine_is_built_again(trt: Fake, graph: Path, tmp_path: Path) -> None:
    settings = TensorRtSpec(cache=str(tmp_path / "cache"))
    wish = EngineWish(graph, "fp32", SIGNATURE.inputs, max_rows=8)
    plan, _ = node_engine(wish, settings, GPU, trt)
    whole = plan.read_bytes()
    for damage in (lambda: plan.write_bytes(whole[:-1]), plan.unlink, (plan.parent / "engine.json").unlink):
        damage()
        assert node_engine(wish, settings, GPU, trt)[0].read_bytes() == whole
    assert trt.builds == 4


def test_two_replicas_of_a_node_build_an_engine_once(trt: Fake, graph: Path, tmp_path: Path) -> None:
    settings = TensorRtSpec(cache=str(tmp_path / "cache"))
    wish = EngineWish(graph, "fp32", SIGNATURE.inputs, max_rows=8)
    with ThreadPoolExecutor(4) as pool:
        found = list(pool.map(lambda _: node_engine(wish, settings, GPU, trt)[0], range(4)))
    assert len(set(found)) == 1
    assert trt.builds == 1


def test_a_failed_build_leaves_no_engine_and_the_kept_one_whole(trt: Fake, graph: Path, tmp_path: Path) -> None:
    settings = TensorRtSpec(cache=str(tmp_path / "cache"))
    wish = EngineWish(graph, "fp32", SIGNATURE.inputs, max_rows=8)
    kept, _ = node_engine(wish, settings, GPU, trt)
    trt.refuse["Builder.build_serialized_network"] = None
    with pytest.raises(ModelError):
        node_engine(replace(wish, max_rows=16), settings, GPU, trt)
    assert [path.name for path in (tmp_path / "cache").iterdir() if path.is_dir()] == [kept.parent.name]
    assert node_engine(wish, settings, GPU, trt)[0] == kept


def test_profiles_come_from_the_serve_section() -> None:
    profiles = make_profiles(SIGNATURE.inputs, TensorRtSpec(opt_rows=4, streams=3), max_rows=16)
    assert [profile.shapes for profile in profiles] == [{"x": ((1, 3), (4, 3), (16, 3))}] * 3
    (auto,) = make_profiles(SIGNATURE.inputs, TensorRtSpec(), max_rows=16)
    assert auto.shapes["x"][1] == (16, 3)
    tokens = (TensorSpec(name="tokens", datatype="INT64", shape=(-1, -1)),)
    (bounded,) = make_profiles(tokens, TensorRtSpec(axes={"tokens.1": (64, 256)}), max_rows=2)
    assert bounded.shapes["tokens"] == ((1, 1), (2, 64), (2, 256))
    with pytest.raises(ModelError, match=r"serve\.tensorrt\.axes to \{tokens\.1"):
        make_profiles(tokens, TensorRtSpec(), max_rows=2)


def rows(count: int, seed: int = 0) -> dict[str, np.ndarray]:
    return {"x": np.random.default_rng(seed).random((count, 3), dtype=np.float32)}


def test_a_shape_that_comes_again_is_recorded_and_another_drops_the_record(
    trt: Fake, graph: Path, tmp_path: Path
) -> None:
    cuda = HostCuda()
    engine = TensorRtEngine(engine_request(graph, tmp_path / "cache"), trt=trt, cuda=cuda)
    answers = [engine.run(rows(4, seed))["logits"] for seed in range(RECORD_AFTER + 2)]
    assert (cuda.recorded, cuda.replayed) == (1, 3)
    assert len({answer.tobytes() for answer in answers}) == len(answers)
    engine.run(rows(2))
    engine.run(rows(4))
    assert (cuda.recorded, cuda.replayed) == (1, 3)
    engine.close()
    assert cuda.released
    silent = HostCuda()
    plain = TensorRtEngine(engine_request(graph, tmp_path / "cache", cuda_graphs=False), trt=trt, cuda=silent)
    for _ in range(RECORD_AFTER + 2):
        plain.run(rows(4))
    assert silent.recorded == 0


def test_each_stream_has_a_context_a_profile_and_a_cuda_stream_of_its_own(
    trt: Fake, graph: Path, tmp_path: Path
) -> None:
    cuda = HostCuda()
    engine = TensorRtEngine(engine_request(graph, tmp_path / "cache", streams=3), trt=trt, cuda=cuda)
    assert engine.streams == cuda.streams == 3
    assert trt.calls.count("IExecutionContext.set_optimization_profile_async") == 3
    together = threading.Barrier(3)

    def ask(seed: int) -> bool:
        together.wait(10)
        return all(
            np.allclose(engine.run(rows(1 + seed, seed))["logits"], alone.run(rows(1 + seed, seed))["logits"])
            for _ in range(20)
        )

    alone = TensorRtEngine(engine_request(graph, tmp_path / "cache", streams=3), trt=trt, cuda=HostCuda())
    with ThreadPoolExecutor(3) as pool:
        assert all(pool.map(ask, range(3)))
    weights = engine_facts(next((tmp_path / "cache").glob("*/engine.plan")).read_bytes(), trt)["weights_bytes"]
    assert engine.footprint_bytes() == weights + 3 * (8 * 3 * 4 + 8 * 2 * 4) + 1000 + 1001 + 1002
    assert trt.builds == 1


@pytest.mark.parametrize("call", ["set_input_shape", "execute_async_v3"])
def test_a_refused_call_is_the_error_of_its_request_and_the_slot_goes_on(
    trt: Fake, graph: Path, tmp_path: Path, call: str
) -> None:
    engine = TensorRtEngine(engine_request(graph, tmp_path / "cache"), trt=trt, cuda=HostCuda())
    want = engine.run(rows(2))["logits"]
    trt.refuse[f"IExecutionContext.{call}"] = False
    with pytest.raises(InferenceError, match=f"TensorRT refused {call}"):
        engine.run(rows(3))
    del trt.refuse[f"IExecutionContext.{call}"]
    np.testing.assert_array_equal(engine.run(rows(2))["logits"], want)


def test_a_plan_whose_profile_is_too_small_is_refused(trt: Fake, graph: Path, tmp_path: Path) -> None:
    (tmp_path / "small.plan").write_bytes(build_engine(build_request(graph), trt).plan)
    request = EngineRequest(tmp_path / "small.plan", SIGNATURE, max_rows=9, device="cuda:0")
    with pytest.raises(BundleError, match="its profile takes 1 to 8 rows"):
        TensorRtEngine(request, trt=trt, cuda=HostCuda())
    assert TensorRtEngine(replace(request, max_rows=8), trt=trt, cuda=HostCuda()).run(rows(8))
    (tmp_path / "torn.plan").write_bytes(b"torn")
    with pytest.raises(BundleError, match="another GPU or version"):
        TensorRtEngine(replace(request, path=tmp_path / "torn.plan"), trt=trt, cuda=HostCuda())


def test_the_bundles_number_is_the_memory_that_the_loaded_engine_tells(trt: Fake, graph: Path, tmp_path: Path) -> None:
    variant = Variant(name="fp32", file="model.onnx", precision="fp32")
    serve = ServeSpec(
        device="cuda",
        engine="tensorrt",
        batching=BatchingSpec(max_rows=8),
        tensorrt=TensorRtSpec(cache=str(tmp_path / "cache"), streams=2),
    )
    measured, evidence = with_footprint(variant, graph, SIGNATURE, serve, lambda: Node(trt, GPU))
    engine = TensorRtEngine(engine_request(graph, tmp_path / "cache", streams=2), trt=trt, cuda=HostCuda())
    assert measured.footprint_bytes == engine.footprint_bytes() == evidence["footprint_bytes"]
    assert trt.builds == 1  # the engine that was measured is the one that is served
    assert evidence["precision"]["proved"] == 1


def test_without_a_gpu_the_bundle_has_no_number_and_says_why(graph: Path) -> None:
    variant = Variant(name="fp32", file="model.onnx", precision="fp32")

    def absent() -> Node:
        raise MissingDependencyError("Cannot build an engine here", found="CUDA is not available")

    measured, evidence = with_footprint(variant, graph, SIGNATURE, ServeSpec(device="cuda"), absent)
    assert measured.footprint_bytes is None
    assert evidence == {"built": False, "why": "Cannot build an engine here: CUDA is not available."}


def test_missing_tensorrt_names_the_extra(graph: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "tensorrt", None)
    for ask in (load_tensorrt, lambda: make_engine(engine_request(graph, tmp_path / "cache"))):
        with pytest.raises(MissingDependencyError, match=r"manta-ml\[gpu\]") as caught:
            ask()
        assert caught.value.exit_code == 3


def test_another_major_version_is_refused(graph: Path) -> None:
    trt = Fake({**snapshot(VERSIONS[-1]), "version": "12.0.0"})
    with pytest.raises(MissingDependencyError, match="major versions 10, 11"):
        build_engine(build_request(graph), trt)
