"""A bundle, and an endpoint of it on the shared Ray, for the tests that only ask."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from cluster.spec.serve import ServeSpec
from serve.client import EndpointClient
from serve.config import EndpointConfig, VersionConfig
from tests.bundles import make_bundle
from tests.triton import triton_python

__all__ = ["triton_python"]


@pytest.fixture(scope="session")
def digits_bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_bundle(tmp_path_factory.mktemp("bundles") / "digits")


def one_version(name: str, bundle: Path, **serve: Any) -> EndpointConfig:
    version = VersionConfig(version="1", bundle=str(bundle))
    return EndpointConfig(name=name, versions=(version,), default_version="1", spec=ServeSpec(**serve))


@pytest.fixture(scope="session")
def endpoint(ray_local: str, digits_bundle: Path) -> Iterator[EndpointClient]:
    """A client of an endpoint 'digits' with one version."""
    from serve.deployments.endpoint import deploy, undeploy

    found = deploy(one_version("digits", digits_bundle, port=0, grpc_port=0))
    with EndpointClient(found.url, "digits") as client:
        yield client
    undeploy("digits")
