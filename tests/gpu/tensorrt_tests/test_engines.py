"""Level L5: engines are built, proved, kept, loaded and asked on a real GPU. Writes the evidence file."""

from __future__ import annotations

import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from cluster.errors import InferenceError, ModelError
from cluster.probe.gpus import NvmlSource
from cluster.spec.serve import TensorRtSpec
from serve.engines import make_engine
from serve.engines.engine import EngineRequest
from serve.engines.process import ProcessEngine
from serve.engines.tensorrt import RECORD_AFTER, TensorRtEngine
from serve.models.gpu_memory import CONTEXT_BYTES
from tests.contract.engine_conformance import EngineConformance
from tests.gpu.graphs import ROWS, SIGNATURE, assert_close, float_answers, write_graph
from trainers.export.precision import Precision

pytestmark = [pytest.mark.gpu, pytest.mark.tensorrt_level("L5"), pytest.mark.timeout(900)]
PRECISIONS: tuple[Precision, ...] = ("fp32", "fp16", "bf16", "int8")
MEMORY_SHARE = 0.05  # the bundle's number against NVML's, beside the driver's context


def request_for(graph: Path, precision: Precision, cache: Path, **changes: Any) -> EngineRequest:
    settings = TensorRtSpec(cache=str(cache), **changes)
    return EngineRequest(graph, SIGNATURE, max_rows=64, device="cuda:0", precision=precision, tensorrt=settings)


@pytest.fixture
def passed(evidence: dict[str, Any], request: pytest.FixtureRequest) -> Any:
    """`passed(**facts)` at the end of a test writes it down."""
    return lambda **facts: evidence["passed"].update({request.node.name: facts})


class TestConformance(EngineConformance):
    @pytest.fixture(autouse=True)
    def _needs(self, tensorrt: Any) -> None:
        pass

    def make(self, folder: Path) -> Any:
        return make_engine(request_for(write_graph(folder, "fp32"), "fp32", folder / "cache")), SIGNATURE


@pytest.mark.parametrize("precision", PRECISIONS)
def test_an_engine_of_each_precision_is_built_proved_and_right(
    precision: Precision, tensorrt: Any, passed: Any, tmp_path: Path
) -> None:
    graph = write_graph(tmp_path, precision)
    started = time.perf_counter()
    engine = TensorRtEngine(request_for(graph, precision, tmp_path / "cache"))
    build_s = time.perf_counter() - started
    want = float_answers(tmp_path)
    worst = max(
        assert_close(engine.run({"x": ROWS["x"][:rows]})["logits"], want[:rows], precision) for rows in (1, 2, 7, 64)
    )
    engine.close()
    started = time.perf_counter()
    TensorRtEngine(request_for(graph, precision, tmp_path / "cache")).close()
    load_s = time.perf_counter() - started
    assert load_s < build_s  # kept, not built again
    passed(worst_relative=worst, build_s=build_s, load_s=load_s)


def test_a_float_graph_does_not_become_an_fp16_engine_in_silence(tensorrt: Any, passed: Any, tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="Cannot build a fp16 engine"):
        TensorRtEngine(request_for(write_graph(tmp_path, "fp32"), "fp16", tmp_path / "cache"))
    passed()


def test_recorded_calls_answer_as_plain_ones_and_shapes_may_change(tensorrt: Any, passed: Any, tmp_path: Path) -> None:
    graph = write_graph(tmp_path, "fp32")
    recorded = TensorRtEngine(request_for(graph, "fp32", tmp_path / "cache"))
    plain = TensorRtEngine(request_for(graph, "fp32", tmp_path / "cache", cuda_graphs=False))
    for rows in (8, 3, 8, 64):
        for start in range(RECORD_AFTER + 3):
            some = {"x": np.roll(ROWS["x"], start, axis=0)[:rows]}
            np.testing.assert_allclose(recorded.run(some)["logits"], plain.run(some)["logits"], rtol=1e-5, atol=1e-5)
    durations = {}
    for name, engine in (("recorded", recorded), ("plain", plain)):
        started = time.perf_counter()
        for _ in range(200):
            engine.run({"x": ROWS["x"][:8]})
        durations[f"{name}_us"] = (time.perf_counter() - started) / 200 * 1e6
    passed(**durations)


def test_streams_run_together_and_do_not_mix_their_rows(tensorrt: Any, passed: Any, tmp_path: Path) -> None:
    graph = write_graph(tmp_path, "fp32")
    engine = TensorRtEngine(request_for(graph, "fp32", tmp_path / "cache", streams=4))
    want = float_answers(tmp_path)
    together = threading.Barrier(4)

    def ask(worker: int) -> None:
        together.wait(60)
        for turn in range(50):
            start = (worker * 7 + turn) % 48
            assert_close(engine.run({"x": ROWS["x"][start : start + 1 + worker]})["logits"],
                         want[start : start + 1 + worker], "fp32")  # fmt: skip

    with ThreadPoolExecutor(4) as pool:
        list(pool.map(ask, range(4)))
    engine.close()
    passed(streams=4)


def test_more_rows_than_the_profile_are_the_requests_error(tensorrt: Any, passed: Any, tmp_path: Path) -> None:
    engine = TensorRtEngine(request_for(write_graph(tmp_path, "fp32"), "fp32", tmp_path / "cache"))
    with pytest.raises(InferenceError, match="set_input_shape"):
        engine.run({"x": np.concatenate([ROWS["x"], ROWS["x"]])})
    assert engine.run({"x": ROWS["x"][:1]})["logits"].shape == (1, 10)
    passed()


def test_the_engines_memory_is_what_the_driver_sees(tensorrt: Any, passed: Any, tmp_path: Path) -> None:
    """An engine in a process of its own: what NVML loses when it loads, beside the process' CUDA context."""
    graph = write_graph(tmp_path, "fp32")
    request = request_for(graph, "fp32", tmp_path / "cache")
    TensorRtEngine(request).close()  # built and kept: loading alone is measured

    def free_bytes() -> int:
        (gpu, *_) = NvmlSource().read().gpus or ()
        assert gpu.memory_free_bytes is not None
        return gpu.memory_free_bytes

    before = free_bytes()
    engine = ProcessEngine(request)
    engine.run({"x": ROWS["x"]})
    taken, told = before - free_bytes(), engine.footprint_bytes() or 0
    engine.close()
    passed(taken_bytes=taken, told_bytes=told, context_allowance_bytes=CONTEXT_BYTES)
    assert told <= taken * (1 + MEMORY_SHARE)
    assert taken - told <= CONTEXT_BYTES * (1 + MEMORY_SHARE)
