"""ONNX Runtime on a real GPU: the CUDA provider behind the `Engine` protocol, and torch's own engine."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from cluster.spec.model import MlpSpec
from serve.engines import make_engine
from serve.engines.engine import EngineRequest
from tests.contract.engine_conformance import EngineConformance
from tests.gpu.graphs import ROWS, SIGNATURE, assert_close, float_answers, write_graph

pytestmark = [pytest.mark.gpu, pytest.mark.timeout(600)]


@pytest.fixture
def cuda_provider(cuda: Any) -> None:
    import onnxruntime

    have = onnxruntime.get_available_providers()
    if "CUDAExecutionProvider" not in have:
        pytest.skip(f"GPU TESTS NOT RUN: this ONNX Runtime has {', '.join(have)}; install manta-ml[gpu]")


class TestCudaProvider(EngineConformance):
    @pytest.fixture(autouse=True)
    def _needs(self, cuda_provider: None) -> None:
        pass

    def make(self, folder: Path) -> Any:
        return make_engine(
            EngineRequest(write_graph(folder, "fp32"), SIGNATURE, max_rows=64, device="cuda:0")
        ), SIGNATURE


class TestTorchOnCuda(EngineConformance):
    @pytest.fixture(autouse=True)
    def _needs(self, cuda: Any) -> None:
        pass

    def make(self, folder: Path) -> Any:
        from safetensors.torch import save_file

        from cluster.entrypoints import load

        spec = MlpSpec(family="mlp", hidden=(8,))
        module = load("trainers.models:build_model")(spec, SIGNATURE.inputs, 10)
        save_file(module.state_dict(), folder / "weights.safetensors")
        model = spec.model_dump(mode="json")
        request = EngineRequest(folder / "weights.safetensors", SIGNATURE, max_rows=64, device="cuda:0", model=model)
        return make_engine(request), SIGNATURE


def test_the_session_runs_on_the_gpu_and_not_on_the_cpu_in_silence(cuda_provider: None, tmp_path: Path) -> None:
    engine: Any = make_engine(EngineRequest(write_graph(tmp_path, "fp32"), SIGNATURE, max_rows=64, device="cuda:0"))
    assert engine._session.get_providers()[0] == "CUDAExecutionProvider"
    want = float_answers(tmp_path)
    for rows in (1, 2, 7, 64):
        assert_close(engine.run({"x": ROWS["x"][:rows]})["logits"], want[:rows], "fp32")


@pytest.mark.parametrize("precision", ["fp16", "int8"])
def test_low_precision_graphs_answer_within_their_bounds(cuda_provider: None, tmp_path: Path, precision: Any) -> None:
    engine = make_engine(EngineRequest(write_graph(tmp_path, precision), SIGNATURE, max_rows=64, device="cuda:0"))
    assert_close(engine.run(ROWS)["logits"], float_answers(tmp_path), precision)
