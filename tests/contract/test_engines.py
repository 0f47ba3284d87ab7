"""Every engine that runs on this machine, and what only some of them promise."""

from __future__ import annotations

import os
import signal
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from cluster.bundle import TensorSignature, TensorSpec, open_bundle
from cluster.entrypoints import load
from cluster.errors import BundleError, InferenceError, MissingDependencyError
from cluster.spec.model import MlpSpec
from serve.engines import EngineRequest, make_engine
from serve.engines.engine import Engine
from serve.engines.onnxruntime import providers_for
from serve.engines.process import RESTARTS_MAX, ProcessEngine
from tests.bundles import make_bundle
from tests.contract.engine_conformance import EngineConformance, request_of
from tests.engines import FakeEngine

SIGNATURE = TensorSignature(
    inputs=(TensorSpec(name="x", datatype="FP32", shape=(-1, 6)),),
    outputs=(TensorSpec(name="logits", datatype="FP32", shape=(-1, 3)),),
)


class TestFake(EngineConformance):
    def make(self, folder: Path) -> tuple[Engine, TensorSignature]:
        return FakeEngine(SIGNATURE), SIGNATURE


class TestOnnxRuntime(EngineConformance):
    def make(self, folder: Path) -> tuple[Engine, TensorSignature]:
        bundle = open_bundle(make_bundle(folder / "bundle"))
        return make_engine(request_of(bundle)), bundle.manifest.signature


class TestProcess(EngineConformance):
    def make(self, folder: Path) -> tuple[Engine, TensorSignature]:
        bundle = open_bundle(make_bundle(folder / "bundle"))
        return ProcessEngine(request_of(bundle)), bundle.manifest.signature


class TestTorch(EngineConformance):
    def make(self, folder: Path) -> tuple[Engine, TensorSignature]:
        spec = MlpSpec(family="mlp", hidden=(4,))
        module = load("trainers.models:build_model")(spec, SIGNATURE.inputs, 3)
        save_file(module.state_dict(), folder / "weights.safetensors")
        request = EngineRequest(
            folder / "weights.safetensors", SIGNATURE, max_rows=8, num_threads=1, model=spec.model_dump(mode="json")
        )
        engine = make_engine(request)
        x = self.inputs(SIGNATURE, 2)
        with torch.inference_mode():
            wanted = module.eval()(torch.from_numpy(x["x"])).numpy()
        np.testing.assert_allclose(engine.run(x)["logits"], wanted, rtol=1e-5, atol=1e-6)
        return engine, SIGNATURE


@pytest.fixture
def isolated(tmp_path: Path) -> object:
    engine = ProcessEngine(request_of(open_bundle(make_bundle(tmp_path / "bundle"))), call_timeout_s=5.0)
    yield engine
    engine.close()


X = {"x": np.zeros((1, 1, 8, 8), np.float32)}


def test_a_killed_engine_process_is_replaced(isolated: ProcessEngine) -> None:
    before, pid = isolated.run(X), isolated.pid
    os.kill(pid, signal.SIGKILL)
    isolated._process.join(10)
    np.testing.assert_array_equal(isolated.run(X)["logits"], before["logits"])
    assert isolated.pid != pid


def test_a_wedged_engine_process_is_ended_and_replaced(isolated: ProcessEngine) -> None:
    pid = isolated.pid
    isolated._call_timeout_s = 0.2
    os.kill(pid, signal.SIGSTOP)
    with pytest.raises(InferenceError, match=r"no answer in 0\.2 s"):
        isolated.run(X)
    isolated._call_timeout_s = 30.0
    assert isolated.run(X)
    assert isolated.pid != pid


def test_an_engine_that_dies_again_and_again_gives_up_and_says_so(isolated: ProcessEngine) -> None:
    isolated._call_timeout_s = 0.05
    for _ in range(RESTARTS_MAX + 1):
        os.kill(isolated.pid, signal.SIGSTOP)
        with pytest.raises(InferenceError):
            isolated.run(X)
    assert "in a row" in isolated.failure
    with pytest.raises(InferenceError, match="in a row"):
        isolated.run(X)


def test_unloading_ends_the_process(isolated: ProcessEngine) -> None:
    pid = isolated.pid
    assert (isolated.footprint_bytes() or 0) > 1 << 20
    isolated.close()
    with pytest.raises(ProcessLookupError):
        os.kill(pid, 0)


def test_an_error_of_loading_crosses_the_process_as_what_it_is(tmp_path: Path) -> None:
    bundle = open_bundle(make_bundle(tmp_path / "bundle"))
    (tmp_path / "bad.onnx").write_bytes(b"not a graph")
    with pytest.raises(BundleError, match=r"Cannot load bad\.onnx") as broken:
        ProcessEngine(request_of(bundle, path=tmp_path / "bad.onnx"))
    assert broken.value.exit_code == 2
    with pytest.raises(MissingDependencyError, match=r"manta-ml\[gpu\]") as missing:
        ProcessEngine(request_of(bundle, device="tpu:0"))
    assert missing.value.exit_code == 3


def test_a_corrupt_graph_and_a_wrong_one_are_told(tmp_path: Path) -> None:
    bundle = open_bundle(make_bundle(tmp_path / "bundle"))
    (tmp_path / "bad.onnx").write_bytes(b"\x08\x0a garbage")
    with pytest.raises(BundleError, match="ONNX Runtime"):
        make_engine(request_of(bundle, path=tmp_path / "bad.onnx"))
    with pytest.raises(BundleError, match="inputs \\['x'\\]"):
        other = SIGNATURE.model_copy(update={"inputs": (TensorSpec(name="y", datatype="FP32", shape=(-1, 6)),)})
        make_engine(request_of(bundle, signature=other))
    (tmp_path / "model.bin").touch()
    with pytest.raises(BundleError, match="no engine takes"):
        make_engine(request_of(bundle, path=tmp_path / "model.bin"))


@pytest.mark.skipif(torch.cuda.is_available(), reason="this machine has a GPU")
def test_a_device_that_is_not_here_is_refused_not_replaced(tmp_path: Path) -> None:
    """ONNX Runtime would fall back to the CPU in silence."""
    bundle = open_bundle(make_bundle(tmp_path / "bundle"))
    with pytest.raises(MissingDependencyError, match="cuda:0"):
        make_engine(request_of(bundle, device="cuda:0"))
    (tmp_path / "engine.plan").write_bytes(b"plan")
    with pytest.raises(MissingDependencyError):
        make_engine(request_of(bundle, path=tmp_path / "engine.plan", device="cuda:0"))


def test_a_provider_that_does_not_load_is_an_error_and_not_the_cpu(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """ONNX Runtime lists a provider whose libraries are missing, leaves it out and goes on."""
    import onnxruntime

    bundle = open_bundle(make_bundle(tmp_path / "bundle"))
    listed = ["CUDAExecutionProvider", "CPUExecutionProvider"]
    monkeypatch.setattr(onnxruntime, "get_available_providers", lambda: listed)
    with pytest.raises((MissingDependencyError, BundleError), match="CUDAExecutionProvider"):
        make_engine(request_of(bundle, device="cuda:0"))


def test_tensorrts_provider_gets_the_variants_precision_and_the_serve_sections_shapes(tmp_path: Path) -> None:
    bundle = open_bundle(make_bundle(tmp_path / "bundle"))
    every = ["TensorrtExecutionProvider", "CUDAExecutionProvider", "CPUExecutionProvider"]
    request = request_of(bundle, device="tensorrt:1", precision="int8", max_rows=16)
    (first, options), second, last = providers_for(request, every)
    assert (first, second, last) == (every[0], ("CUDAExecutionProvider", {"device_id": 1}), every[2])
    assert options == {
        "device_id": 1,
        "trt_int8_enable": True,
        "trt_profile_min_shapes": "x:1x1x8x8",
        "trt_profile_opt_shapes": "x:16x1x8x8",
        "trt_profile_max_shapes": "x:16x1x8x8",
    }
    plain = providers_for(request_of(bundle, device="tensorrt:0"), every)[0][1]
    assert not any(name.endswith("_enable") for name in plain)
    for device in ("tensorrt:0", "tpu:0"):
        with pytest.raises(MissingDependencyError, match=device):
            providers_for(request_of(bundle, device=device), every[1:])
