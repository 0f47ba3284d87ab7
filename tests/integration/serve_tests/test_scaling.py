"""The number of replicas follows the work, up and down, and nobody's request is lost on the way."""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from ray import serve as ray_serve

from cluster.errors import EndpointError
from cluster.spec.serve import ReplicaSpec
from serve.client import EndpointClient
from serve.deployments.commands import _endpoint_row
from serve.deployments.endpoint import Endpoint, deploy, endpoints, undeploy
from tests.bundles import make_bundle, mlp_graph
from tests.integration.serve_tests.conftest import one_version
from tests.integration.serve_tests.test_faults import eventually

WIDTH = 2048


@pytest.fixture
def scaling(endpoint: EndpointClient, tmp_path: Path) -> Iterator[Endpoint]:
    """A model that keeps an engine busy, one to two replicas, quick decisions."""
    graph = mlp_graph(WIDTH, WIDTH, 10, layers=3)
    bundle = make_bundle(tmp_path / "bundle", name="scaling", item_shape=(WIDTH,), graph=graph)
    replicas = ReplicaSpec(min=1, max=2, target_busy=0.3, up_delay_s=0.0, down_delay_s=2.0)
    yield deploy(one_version("scaling", bundle, replicas=replicas, ready_timeout_s=90.0))
    undeploy("scaling")


@pytest.mark.slow
def test_replicas_come_and_go_with_the_work_and_no_request_is_lost(scaling: Endpoint) -> None:
    answers: Counter[str] = Counter()
    stop = threading.Event()
    x = {"x": np.ones((64, WIDTH), np.float32)}

    def ask() -> None:
        with EndpointClient(scaling.url, "scaling") as client:
            while not stop.is_set():
                try:
                    answers[client.infer(x).version] += 1
                except EndpointError as error:
                    answers[error.found] += 1

    def running() -> int:
        return next(found.replicas for found in endpoints() if found.name == "scaling")

    threads = [threading.Thread(target=ask, daemon=True) for _ in range(4)]
    for thread in threads:
        thread.start()
    try:
        eventually(lambda: running() == 2)
    finally:
        stop.set()
        for thread in threads:
            thread.join(60)
    eventually(lambda: running() == 1)
    assert set(answers) == {"1"}


@pytest.mark.slow
def test_an_endpoint_rests_at_zero_and_comes_back_for_whoever_asks(
    ray_local: str, endpoint: EndpointClient, tmp_path: Path
) -> None:
    """To zero when nobody asks; a request that comes then is held and answered; traffic during the start is too."""
    bundle = make_bundle(tmp_path / "bundle", name="resting")
    replicas = ReplicaSpec(min=0, max=1, up_delay_s=0.0, down_delay_s=1.0)
    found = deploy(one_version("resting", bundle, replicas=replicas, ready_timeout_s=90.0))
    row = {"x": np.zeros((1, 1, 8, 8), np.float32)}

    def processes() -> int:
        """In any state: a replica that leaves still answers."""
        application = ray_serve.status().applications["resting"]
        return sum(sum(each.replica_states.values()) for each in application.deployments.values())

    try:
        for _ in range(2):  # there and back again, twice
            eventually(lambda: processes() == 0)
            with EndpointClient(found.url, "resting", only_look=True) as client:
                refused = [client.is_ready() for _ in range(20)]
            told = _endpoint_row(SimpleNamespace(address=ray_local), "resting", found.url, "")  # type: ignore[arg-type]
            assert (refused, told["state"], processes()) == ([False] * 20, "AT ZERO", 0), "asking starts none"
            answers: Counter[str] = Counter()

            def ask(answers: Counter[str] = answers) -> None:
                with EndpointClient(found.url, "resting") as client:
                    for _ in range(20):
                        answers[client.infer(row).version] += 1

            threads = [threading.Thread(target=ask) for _ in range(4)]
            for thread in threads:
                thread.start()
            for thread in threads:
                thread.join(90)
            assert answers == {"1": 80}
    finally:
        undeploy("resting")
