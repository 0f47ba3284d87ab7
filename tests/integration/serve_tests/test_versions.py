"""Versions on Ray Serve under traffic: a new one comes without a lost request, a bad one changes nothing, and back."""

from __future__ import annotations

import shutil
import threading
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest

from cluster.errors import EndpointError, RequestError
from serve.client import EndpointClient
from serve.config import EndpointConfig
from serve.deployments.endpoint import configuration, deploy, rollback, undeploy
from tests.bundles import make_bundle
from tests.integration.serve_tests.conftest import one_version

X = {"x": np.zeros((1, 1, 8, 8), np.float32)}


class Traffic:
    """Asks without pause in a thread; remembers versions that answered and every failure."""

    def __init__(self, url: str, name: str) -> None:
        self.versions: Counter[str] = Counter()
        self.failures: list[str] = []
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, args=(url, name), daemon=True)

    def _run(self, url: str, name: str) -> None:
        with EndpointClient(url, name) as client:
            while not self._stop.is_set():
                try:
                    self.versions[client.infer(X).version] += 1
                except EndpointError as error:
                    self.failures.append(error.found)

    @contextmanager
    def running(self) -> Iterator[Traffic]:
        self._thread.start()
        try:
            yield self
        finally:
            self._stop.set()
            self._thread.join(30)


@pytest.fixture
def rolling(ray_local: str, tmp_path: Path) -> Iterator[tuple[EndpointConfig, str]]:
    first = make_bundle(tmp_path / "first", name="rolling", seed=1)
    config = one_version("rolling", first, port=0)
    found = deploy(config)
    yield config, found.url
    undeploy("rolling")


def test_versions_change_under_traffic_without_a_lost_request(
    rolling: tuple[EndpointConfig, str], tmp_path: Path
) -> None:
    config, url = rolling
    second = make_bundle(tmp_path / "second", name="rolling", seed=2)
    with Traffic(url, "rolling").running() as traffic, EndpointClient(url, "rolling") as client:
        before = client.infer(X).outputs["logits"]
        assert deploy(config.with_version(str(second))).version == "2"
        after = client.infer(X)
        assert after.version == "2"
        assert not np.allclose(after.outputs["logits"], before)
        assert rollback("rolling").version == "1"
        np.testing.assert_array_equal(client.infer(X).outputs["logits"], before)
    assert traffic.failures == []
    assert set(traffic.versions) == {"1", "2"}
    with pytest.raises(RequestError, match="is its first"):
        rollback("rolling")


def test_two_versions_answer_side_by_side_each_by_its_path(rolling: tuple[EndpointConfig, str], tmp_path: Path) -> None:
    config, url = rolling
    second = config.with_version(str(make_bundle(tmp_path / "second", name="rolling", seed=2)))
    with EndpointClient(url, "rolling") as client:
        before = client.infer(X).outputs["logits"]
        assert not client.serves("2")
        deploy(second.with_values({"versions": ["1"]}))
        old, new, default = client.infer(X, version="1"), client.infer(X, version="2"), client.infer(X)
        assert (old.version, new.version, default.version) == ("1", "2", "2")
        np.testing.assert_array_equal(old.outputs["logits"], before)
        np.testing.assert_array_equal(new.outputs["logits"], default.outputs["logits"])
        assert {entry["state"] for entry in client.index()} == {"READY"}
        policy = client.get("/v2/models/rolling/versions/2/config")["version_policy"]
        assert policy == {"specific": {"versions": [2, 1]}}
        assert [entry["version"] for entry in client.get("/stats")] == ["1", "2"]


def test_a_version_that_cannot_be_served_leaves_the_old_one(
    rolling: tuple[EndpointConfig, str], tmp_path: Path
) -> None:
    config, url = rolling
    torn = make_bundle(tmp_path / "torn", name="rolling", seed=3)
    graph = torn / "model.onnx"
    graph.write_bytes(graph.read_bytes()[:-10])
    with Traffic(url, "rolling").running() as traffic, pytest.raises(EndpointError, match=r"model\.onnx") as caught:
        deploy(config.with_version(str(torn)))
    assert "version 2" in str(caught.value)
    assert traffic.failures == []
    assert set(traffic.versions) == {"1"}
    assert configuration("rolling") == config
    shutil.rmtree(torn)


def test_the_first_version_that_cannot_be_served_leaves_nothing(ray_local: str, tmp_path: Path) -> None:
    torn = make_bundle(tmp_path / "torn", name="torn")
    (torn / "sample.npz").unlink()
    with pytest.raises(EndpointError, match=r"sample\.npz"):
        deploy(one_version("torn", torn, port=0))
