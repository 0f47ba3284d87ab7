"""The path that serve.engine and serve.tensorrt take, from the YAML to the engine that is made."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from cluster.spec.serve import BatchingSpec, ServeSpec, TensorRtSpec
from serve.config import EndpointConfig
from serve.engines.engine import EngineRequest
from serve.models import loading
from tests.bundles import make_bundle
from tests.engines import FakeEngine


class Bounded(FakeEngine):
    """Refuses more rows than it was made for, as an engine with a profile does."""

    def __init__(self, request: EngineRequest) -> None:
        super().__init__(request.signature)
        self.request = request
        self.streams = request.tensorrt.streams if request.tensorrt else 1

    def run(self, inputs: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        assert len(inputs["x"]) <= self.request.max_rows
        return super().run(inputs)


@pytest.fixture
def made(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, EngineRequest]]:
    found: list[tuple[str, EngineRequest]] = []

    def make(kind: str) -> Any:
        def build(request: EngineRequest, **_: Any) -> Bounded:
            found.append((kind, request))
            return Bounded(request)

        return build

    monkeypatch.setattr(loading, "make_engine", make("here"))
    monkeypatch.setattr(loading, "ProcessEngine", make("process"))
    monkeypatch.setattr(loading, "check_parity", lambda *arguments: None)
    return found


def load(folder: Path, **serve: Any) -> loading.Loaded:
    spec = ServeSpec(device="cuda", engine="tensorrt", **serve)
    config = EndpointConfig.of_run("digits", make_bundle(folder / "bundle"), spec)
    return loading.load_engine(config, config.versions[0])


def test_one_stream_has_a_process_and_several_share_the_replicas(tmp_path: Path, made: Any) -> None:
    one = load(tmp_path, batching=BatchingSpec(max_rows=8))
    assert one.policy.workers == 1
    four = load(tmp_path, batching=BatchingSpec(max_rows=8), tensorrt=TensorRtSpec(streams=4))
    assert four.policy.workers == 4
    assert [kind for kind, _ in made] == ["process", "here"]
    request = made[1][1]
    assert (request.max_rows, request.device, request.precision) == (8, "cuda", "fp32")
    assert request.tensorrt == TensorRtSpec(streams=4)


@pytest.mark.parametrize(("rows", "built_for"), [(8, 8), ("auto", 256)])
def test_measuring_never_asks_for_more_rows_than_the_engine_was_built_for(
    tmp_path: Path, made: Any, rows: Any, built_for: int
) -> None:
    loaded = load(tmp_path, batching=BatchingSpec(max_rows=rows, max_wait_ms="auto"))
    assert made[0][1].max_rows == built_for
    assert loaded.policy.max_rows <= built_for


def test_without_the_knob_no_engine_is_built(tmp_path: Path, made: Any) -> None:
    config = EndpointConfig.of_run("digits", make_bundle(tmp_path / "bundle"), ServeSpec())
    loading.load_engine(config, config.versions[0])
    assert made[0][1].tensorrt is None
