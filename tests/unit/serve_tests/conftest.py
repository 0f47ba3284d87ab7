"""The planes over a fake engine: the whole request path without Ray, sockets or files of a model."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from pathlib import Path
from typing import Any, TypeVar

import pytest

from cluster.bundle import open_bundle
from cluster.spec.serve import BatchingSpec, ServeSpec
from serve.config import EndpointConfig, VersionConfig
from serve.doors.asgi import AsgiDoor
from serve.doors.predict import predict_app
from serve.handlers.controlplane import ControlPlane
from serve.handlers.dataplane import DataPlane
from serve.models.loading import Loaded, batch_policy
from serve.models.model import ServedModel
from serve.models.repository import ModelRepository
from serve.protocol.limits import Limits
from tests.bundles import make_bundle
from tests.engines import FakeEngine

T = TypeVar("T")


@pytest.fixture(scope="session")
def small_bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three inputs, two outputs."""
    return make_bundle(tmp_path_factory.mktemp("small") / "bundle", name="m", item_shape=(3,), num_outputs=2)


class Place:
    """A door, its planes, and the fake engine behind it. Make it inside a running loop."""

    def __init__(self, bundle: Path, *, limits: Limits, batching: BatchingSpec, pages: bool = False) -> None:
        opened = open_bundle(bundle)
        self.engine = FakeEngine(opened.manifest.signature)
        version = VersionConfig(version="1", bundle=str(bundle))
        config = EndpointConfig(name="m", versions=(version,), default_version="1", spec=ServeSpec(batching=batching))
        policy = batch_policy(self.engine, opened.manifest.signature, batching)
        self.engine.calls.clear()
        self.model = ServedModel(config, version, Loaded(opened, opened.variant(), self.engine, policy), limits)
        self.repository = ModelRepository("m", limits)
        self.repository.config, self.repository.models = config, {"1": self.model}
        self.repository.default = self.model
        self.dataplane = DataPlane(self.repository, limits)
        self.controlplane = ControlPlane(self.dataplane)
        app = predict_app(self.dataplane, self.controlplane) if pages else None
        self.door = AsgiDoor(self.dataplane, self.controlplane, app)

    async def close(self) -> None:
        self.engine.gate.set()
        await self.repository.close()


@pytest.fixture
def in_place(small_bundle: Path) -> Callable[..., Any]:
    """Run `test(place)` on an event loop, then close the place."""

    def run(
        test: Callable[[Place], Coroutine[Any, Any, T]],
        *,
        limits: Limits | None = None,
        batching: BatchingSpec | None = None,
        pages: bool = False,
    ) -> T:
        async def whole() -> T:
            place = Place(
                small_bundle,
                limits=limits or Limits(),
                batching=batching or BatchingSpec(max_rows=8, max_wait_ms=0.0),
                pages=pages,
            )
            try:
                return await asyncio.wait_for(test(place), 20)
            finally:
                await place.close()

        return asyncio.run(whole())

    return run
