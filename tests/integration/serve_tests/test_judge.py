"""The judge on Ray Serve: tritonclient through HAProxy, over HTTP and over gRPC, on the same replicas."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import grpc
import pytest

from cluster.runtime.ray_private import serve_details
from serve.client import EndpointClient
from serve.deployments.endpoint import deploy, undeploy
from serve.doors.rpc import MESSAGE_BYTES_MAX
from serve.proto import inference_pb2, inference_pb2_grpc
from tests.bundles import make_echo_bundle
from tests.contract.protocol_tests.test_triton_grpc import assert_stream
from tests.integration.serve_tests.conftest import one_version
from tests.triton import ADMIN_TOKEN, GRPC_JUDGE, HTTP_JUDGE, admin_token_file, judge


@pytest.fixture(scope="module")
def echo_url(endpoint: EndpointClient, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """A second endpoint beside 'digits': their paths and their gRPC application names keep them apart."""
    folder = tmp_path_factory.mktemp("echo")
    bundle = make_echo_bundle(folder / "bundle")
    yield deploy(one_version("echo", bundle, admin_token_file=str(admin_token_file(folder)))).url
    undeploy("echo")


def test_tritonclient_http_finds_every_datatype_through_the_proxy(triton_python: Path, echo_url: str) -> None:
    seen = judge(triton_python, HTTP_JUDGE, echo_url.removeprefix("http://"), "echo", ADMIN_TOKEN)
    assert [form for form, echo in seen["echo"].items() if not all(echo.values())] == []
    assert seen["errors"]["unknown model"][0] == "404"


def grpc_address() -> str:
    return f"127.0.0.1:{serve_details()['grpc_options']['port']}"


def test_tritonclient_grpc_finds_every_datatype_through_the_proxy(triton_python: Path, echo_url: str) -> None:
    seen = judge(triton_python, GRPC_JUDGE, grpc_address(), "echo", ADMIN_TOKEN, "echo")
    assert all(seen["echo"].values())
    assert seen["health"] == [8, 1]
    assert_stream(seen)
    assert seen["errors"]["unknown model"][0] == "StatusCode.NOT_FOUND"
    assert seen["errors"]["missing inputs"][0] == "StatusCode.INVALID_ARGUMENT"


def test_a_grpc_message_past_the_limit_is_refused_by_its_length(echo_url: str) -> None:
    message = inference_pb2.ModelInferRequest(model_name="echo", raw_input_contents=[bytes(MESSAGE_BYTES_MAX)])
    options = [("grpc.max_send_message_length", -1)]
    with grpc.insecure_channel(grpc_address(), options=options) as channel:
        stub = inference_pb2_grpc.GRPCInferenceServiceStub(channel)
        with pytest.raises(grpc.RpcError) as caught:
            stub.ModelInfer(message, metadata=(("application", "echo"),), timeout=30)
    assert caught.value.code() == grpc.StatusCode.RESOURCE_EXHAUSTED
