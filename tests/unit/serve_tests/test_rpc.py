"""An error that is not ours, inside a gRPC method: on both servers the client hears a code and no words of it."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from types import SimpleNamespace
from typing import Any

import grpc
import pytest

from cluster.errors import EndpointError
from serve.deployments.replica import EndpointReplica
from serve.doors.rpc import add_to_server
from serve.proto import inference_pb2, inference_pb2_grpc
from serve.protocol.errors import INTERNAL_ERROR, bad_request


class Broken:
    """An `Rpc` whose methods raise."""

    def __init__(self, error: Exception) -> None:
        self.error = error

    async def answer(self, *_: Any) -> Any:
        raise self.error

    async def stream(self, *_: Any) -> AsyncIterator[Any]:
        raise self.error
        yield


class Context:
    """Ray Serve's context of a call: keeps code and details."""

    code: Any = None
    details = ""

    def set_code(self, code: Any) -> None:
        self.code = code

    def set_details(self, details: str) -> None:
        self.details = details


OURS = (bad_request("the shape is wrong"), grpc.StatusCode.INVALID_ARGUMENT, "the shape is wrong")
NOT_OURS = (KeyError("secret payload"), grpc.StatusCode.INTERNAL, INTERNAL_ERROR)


@pytest.mark.parametrize(("error", "code", "words"), [OURS, NOT_OURS], ids=["ours", "not ours"])
def test_on_ray_serve_a_refusal_is_a_code_and_no_exception_that_its_log_would_unfold(
    error: Exception, code: Any, words: str
) -> None:
    replica = SimpleNamespace(rpc=Broken(error))
    unary, stream = Context(), Context()

    async def ask() -> None:
        message = await EndpointReplica.ServerMetadata(replica, None, grpc_context=unary)  # type: ignore[attr-defined]
        assert message.SerializeToString() == b""
        with pytest.raises(EndpointError) as caught:
            async for _ in EndpointReplica.ModelStreamInfer(replica, None, grpc_context=stream):  # type: ignore[attr-defined]
                pass
        assert "secret" not in str(caught.value)
        assert caught.value.__suppress_context__

    asyncio.run(ask())
    for context in (unary, stream):
        assert (context.code, words in context.details, "secret" in context.details) == (code, True, False)


@pytest.mark.parametrize(("error", "code", "words"), [OURS, NOT_OURS], ids=["ours", "not ours"])
def test_in_one_process_the_client_sees_the_same(error: Exception, code: Any, words: str) -> None:
    async def ask() -> None:
        server = grpc.aio.server()
        add_to_server(Broken(error), server)  # type: ignore[arg-type]
        port = server.add_insecure_port("127.0.0.1:0")
        await server.start()
        try:
            async with grpc.aio.insecure_channel(f"127.0.0.1:{port}") as channel:
                stub = inference_pb2_grpc.GRPCInferenceServiceStub(channel)
                for call in (
                    stub.ServerMetadata(inference_pb2.ServerMetadataRequest()),
                    stub.ModelStreamInfer(iter([])).read(),
                ):
                    with pytest.raises(grpc.aio.AioRpcError) as caught:
                        await call
                    assert (caught.value.code(), words in caught.value.details()) == (code, True)
                    assert "secret" not in caught.value.details()
        finally:
            await server.stop(1)

    asyncio.run(ask())
