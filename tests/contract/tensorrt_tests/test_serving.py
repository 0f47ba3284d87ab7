"""Level L3: from an endpoint's configuration to answers, through loading, the engine cache, parity and the batcher."""

from __future__ import annotations

import asyncio
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from cluster.bundle import open_bundle
from cluster.errors import BundleError, EndpointError
from cluster.spec.serve import BatchingSpec, ServeSpec, TensorRtSpec
from serve.batching.batcher import Batcher
from serve.config import EndpointConfig
from serve.engines import tensorrt as engine_module
from serve.engines.tensorrt import TensorRtEngine
from serve.models.loading import load_engine
from serve.protocol.limits import Limits
from serve.protocol.statistics import ModelStatistics
from tests.bundles import make_bundle
from tests.contract.tensorrt_tests.bindings import VERSIONS, snapshot
from tests.contract.tensorrt_tests.fake import Fake
from tests.contract.tensorrt_tests.memory import HostCuda

pytestmark = pytest.mark.tensorrt_level("L3")


@pytest.fixture(params=VERSIONS)
def trt(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Fake:
    """`import tensorrt` gives the fake, and the engine's CUDA is host memory."""
    fake = Fake(snapshot(request.param))
    monkeypatch.setitem(sys.modules, "tensorrt", fake)
    monkeypatch.setattr(engine_module, "TorchCuda", lambda device: HostCuda())
    return fake


def config_of(bundle: Path, cache: Path, **settings: Any) -> EndpointConfig:
    spec = ServeSpec(
        device="cuda",
        engine="tensorrt",
        batching=BatchingSpec(max_rows=8),
        tensorrt=TensorRtSpec(cache=str(cache), streams=2, **settings),
    )
    return EndpointConfig.of_run("digits", bundle, spec)


def test_an_endpoint_builds_its_engine_proves_it_and_answers_many_at_once(trt: Fake, tmp_path: Path) -> None:
    bundle = make_bundle(tmp_path / "bundle")
    config = config_of(bundle, tmp_path / "cache")
    loaded = load_engine(config, config.versions[0])
    assert isinstance(loaded.engine, TensorRtEngine)
    assert (loaded.policy.workers, loaded.policy.preferred_rows, trt.builds) == (2, (8,), 1)
    sample = open_bundle(bundle).sample()

    async def ask_all() -> list[dict[str, np.ndarray]]:
        signature = loaded.bundle.manifest.signature
        batcher = Batcher(loaded.engine.run, signature, loaded.policy, Limits(), ModelStatistics("digits", "1"))
        rows = [sample["inputs/x"][i % 4 : i % 4 + 1] for i in range(60)]
        answers = await asyncio.gather(*(batcher.submit({"x": row}) for row in rows))
        await batcher.drain()
        batcher.close()
        return answers

    for i, answer in enumerate(asyncio.run(ask_all())):
        np.testing.assert_allclose(answer["logits"][0], sample["outputs/fp32/logits"][i % 4], rtol=1e-5, atol=1e-5)
    loaded.engine.close()
    again = load_engine(config, config.versions[0])
    assert trt.builds == 1  # a replica that restarts finds the engine
    again.engine.close()


def test_an_engine_that_answers_otherwise_than_the_bundle_is_not_served(
    trt: Fake, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = config_of(make_bundle(tmp_path / "bundle"), tmp_path / "cache")
    right = HostCuda.read
    monkeypatch.setattr(HostCuda, "read", lambda *arguments: right(*arguments) + np.float32(1))
    with pytest.raises(EndpointError, match="the outputs that the bundle recorded"):
        load_engine(config, config.versions[0])


def test_a_node_with_another_gpu_builds_its_own_and_a_copied_cache_is_refused(
    trt: Fake, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Engines are found by key; a plan that the runtime does not take is an error of the request's kind (exit 2)."""
    config = config_of(make_bundle(tmp_path / "bundle"), tmp_path / "cache")
    load_engine(config, config.versions[0]).engine.close()
    monkeypatch.setattr(engine_module, "TorchCuda", lambda device: HostCuda("another GPU", "8.0"))
    trt.gpu = "another GPU"
    load_engine(config, config.versions[0]).engine.close()
    assert trt.builds == 2
    trt.gpu = "a third GPU under the second one's name"
    with pytest.raises(BundleError, match="another GPU or version") as caught:
        load_engine(config, config.versions[0])
    assert caught.value.exit_code == 2
