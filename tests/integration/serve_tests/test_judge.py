"""The judge on Ray Serve: tritonclient through HAProxy, over HTTP and over gRPC, on the same replicas."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from serve.client import EndpointClient
from serve.deployments.endpoint import EndpointOptions, deploy, grpc_address, undeploy
from tests.bundles import make_echo_bundle
from tests.integration.serve_tests.conftest import one_version
from tests.triton import GRPC_JUDGE, HTTP_JUDGE, judge


@pytest.fixture(scope="module")
def echo_url(endpoint: EndpointClient, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """A second endpoint beside 'digits': their paths and their gRPC application names keep them apart."""
    bundle = make_echo_bundle(tmp_path_factory.mktemp("echo") / "bundle")
    yield deploy(one_version("echo", bundle), EndpointOptions()).url
    undeploy("echo")


def test_tritonclient_http_finds_every_datatype_through_the_proxy(triton_python: Path, echo_url: str) -> None:
    seen = judge(triton_python, HTTP_JUDGE, echo_url.removeprefix("http://"), "echo")
    assert [form for form, echo in seen["echo"].items() if not all(echo.values())] == []
    assert seen["errors"]["unknown model"][0] == "404"


def test_tritonclient_grpc_finds_every_datatype_through_the_proxy(triton_python: Path, echo_url: str) -> None:
    seen = judge(triton_python, GRPC_JUDGE, grpc_address(), "echo", "echo")
    assert all(seen["echo"].values())
    assert seen["health"] == [8, 1]
    assert seen["errors"]["unknown model"][0] == "StatusCode.NOT_FOUND"
    assert seen["errors"]["missing inputs"][0] == "StatusCode.INVALID_ARGUMENT"
