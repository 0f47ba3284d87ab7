"""One endpoint in one process: the queue's bounds of its spec, how soon its threads switch."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from ray.serve.exceptions import RayServeException

from cluster.errors import MantaError
from cluster.spec.serve import QueueSpec, ServeSpec
from serve.batching.batcher import SWITCH_INTERVAL_S
from serve.config import EndpointConfig, VersionConfig
from serve.deployments.replica import EndpointReplica
from serve.server import listen, open_door, serve_endpoint
from tests.bundles import make_bundle

CONFIG = EndpointConfig(name="m", versions=(VersionConfig(version="1", bundle="/b/1"),), default_version="1")


def test_the_queues_bounds_reach_the_batcher(tmp_path: Path) -> None:
    async def test() -> tuple[int, int, float | None]:
        version = VersionConfig(version="1", bundle=str(make_bundle(tmp_path / "bundle")))
        spec = ServeSpec(queue=QueueSpec(max_rows=5, max_mib=2, max_wait_ms=50.0))
        config = EndpointConfig(name="m", versions=(version,), default_version="1", spec=spec)
        door = await open_door(config)
        limits = door.dataplane.repository.models["1"].batcher._limits
        await door.dataplane.repository.close()
        return limits.queue_rows, limits.queue_bytes, limits.queue_wait_s

    assert asyncio.run(test()) == (5, 2 << 20, 0.05)


@pytest.fixture
def switch_interval() -> Iterator[Callable[[], float]]:
    before = sys.getswitchinterval()
    yield sys.getswitchinterval
    sys.setswitchinterval(before)


def test_both_serving_processes_switch_threads_soon(switch_interval: Callable[[], float]) -> None:
    """At Python's 5 ms the event loop waits that long for every batch that the engine's thread takes."""
    with listen("127.0.0.1", 0) as listener, pytest.raises(MantaError, match="/b/1"):
        asyncio.run(serve_endpoint(CONFIG, listener))
    assert switch_interval() == pytest.approx(SWITCH_INTERVAL_S)
    sys.setswitchinterval(0.005)
    with pytest.raises(RayServeException, match="replica"):
        EndpointReplica("m")  # it sets the interval, then asks Ray Serve who it is
    assert switch_interval() == pytest.approx(SWITCH_INTERVAL_S)
