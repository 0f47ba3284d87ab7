"""The gRPC door: the planes behind `inference.GRPCInferenceService` and health.

`Rpc` has one coroutine a method and needs no server: `python -m serve` puts it on grpc.aio, Ray Serve calls it as
methods of the replica. Invariant: every failure is a MantaError whose code is `grpc_code_of`.

Covered: the protocol's methods, a stream of requests, configuration, statistics, repository. Not covered: more than
one answer to a request, shared memory, trace and log settings: UNIMPLEMENTED.
"""

from __future__ import annotations

import asyncio
import logging
import math
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Any
from urllib.parse import unquote

import grpc

from cluster.errors import MantaError
from serve.access import from_metadata
from serve.doors.streaming import stream_infer
from serve.handlers.access_log import Seen
from serve.handlers.controlplane import ControlPlane
from serve.handlers.dataplane import DataPlane
from serve.handlers.peers import CALLER, Caller
from serve.models.model import ServedModel
from serve.proto import health_pb2, health_pb2_grpc, inference_pb2, inference_pb2_grpc
from serve.protocol.codec import InferRequest
from serve.protocol.errors import INTERNAL_ERROR, bad_request, grpc_code_of
from serve.protocol.messages import decode_message, encode_message, message_of_json

LOG = logging.getLogger(__name__)
MESSAGE_BYTES_MAX = 128 << 20
INFERENCE, HEALTH = "inference.GRPCInferenceService", "grpc.health.v1.Health"
INFERENCE_METHODS = tuple(inference_pb2.DESCRIPTOR.services_by_name["GRPCInferenceService"].methods_by_name)
STREAM_METHODS = ("ModelStreamInfer",)
HEALTH_METHODS = ("Check",)
REQUEST_ID = "x-request-id"
LOGGED_CHARACTERS_MAX = 200  # of a value of the metadata
OPEN_METHODS = ("Check", "ServerLive", "ServerReady")
HERE_ELEMENTS = 32 << 10  # of a list of numbers that the event loop decodes itself: about 2 ms; raw contents are views
DETAILS_MAX = 2000  # characters: HTTP/2 trailers with more than 8 KiB are refused by many clients


class Rpc:
    """Every method takes a request message and returns a response message, or raises MantaError."""

    def __init__(self, dataplane: DataPlane, controlplane: ControlPlane) -> None:
        self._dataplane = dataplane
        self._controlplane = controlplane

    async def answer(self, name: str, request: Any, context: Any) -> Any:
        """The response message to a call of method `name`, authorized and logged. Raises MantaError."""
        with self._logged(name, context) as seen:
            self._begin(name, context, seen)
            response = await getattr(self, name)(request)
            seen.request_bytes, seen.response_bytes = request.ByteSize(), response.ByteSize()
            return response

    async def stream(self, name: str, requests: AsyncIterator[Any], context: Any) -> AsyncIterator[Any]:
        """The same for a method that takes and gives a stream."""
        with self._logged(name, context) as seen:
            self._begin(name, context, seen)
            async for response in getattr(self, name)(_counted(requests, seen)):
                seen.response_bytes += response.ByteSize()
                yield response

    @contextmanager
    def _logged(self, name: str, context: Any) -> Iterator[Seen]:
        seen = Seen("INTERNAL")
        log = self._dataplane.access_log
        if not log.sampled():
            yield seen
            return
        path = f"/{HEALTH if name in HEALTH_METHODS else INFERENCE}/{name}"
        with log.line(_host(context.peer()), "gRPC", path, seen):
            try:
                yield seen
            except MantaError as error:
                seen.status = grpc_code_of(error)
                raise
            except (asyncio.CancelledError, GeneratorExit):
                seen.status = "CANCELLED"
                raise
            seen.status = "OK"

    def _begin(self, name: str, context: Any, seen: Seen) -> None:
        """Carry the call's id, then see whether it may go on. Raises ProtocolError."""
        metadata = context.invocation_metadata() or ()
        for key, value in metadata:
            if key == REQUEST_ID:
                seen.request_id = str(value)[:LOGGED_CHARACTERS_MAX]
                context.set_trailing_metadata((*(context.trailing_metadata() or ()), (key, value)))
            elif key == "x-forwarded-for":
                seen.forwarded_for = str(value)[-LOGGED_CHARACTERS_MAX:]
        self._authorize(name, metadata)

    def _authorize(self, name: str, metadata: Iterable[tuple[str, str | bytes]]) -> None:
        """Raise ProtocolError 401 or 403 unless the call may go on. Health and liveness need no token."""
        if name not in OPEN_METHODS:
            is_admin = name in ("RepositoryModelLoad", "RepositoryModelUnload")
            authorization = from_metadata(metadata)
            self._dataplane.authorize(authorization, admin=is_admin)
            CALLER.set(Caller(authorization))

    async def Check(self, request: Any) -> Any:
        """grpc.health.v1: the server for an empty name, else the model of that name."""
        if request.service in ("", self._dataplane.repository.name, INFERENCE):
            states = health_pb2.HealthCheckResponse
            return states(status=states.SERVING if self._dataplane.ready else states.NOT_SERVING)
        raise bad_request(f"unknown service {request.service[:80]!r}", status=404)

    async def ServerLive(self, request: Any) -> Any:
        return inference_pb2.ServerLiveResponse(live=True)

    async def ServerReady(self, request: Any) -> Any:
        return inference_pb2.ServerReadyResponse(ready=self._dataplane.ready)

    async def ModelReady(self, request: Any) -> Any:
        try:
            self._dataplane.find(request.name, request.version)
        except MantaError:
            return inference_pb2.ModelReadyResponse(ready=False)
        return inference_pb2.ModelReadyResponse(ready=True)

    async def ServerMetadata(self, request: Any) -> Any:
        return inference_pb2.ServerMetadataResponse(**self._dataplane.server_metadata())

    async def ModelMetadata(self, request: Any) -> Any:
        metadata = self._dataplane.model_metadata(request.name, request.version)
        return inference_pb2.ModelMetadataResponse(**metadata)

    async def ModelConfig(self, request: Any) -> Any:
        raw = self._dataplane.model_configuration(request.name, request.version)
        return inference_pb2.ModelConfigResponse(config=message_of_json(inference_pb2.ModelConfig, raw))

    async def ModelStatistics(self, request: Any) -> Any:
        raw = self._dataplane.statistics(request.name, request.version)
        entries = [message_of_json(inference_pb2.ModelStatistics, entry) for entry in raw["model_stats"]]
        return inference_pb2.ModelStatisticsResponse(model_stats=entries)

    async def RepositoryIndex(self, request: Any) -> Any:
        entries = self._controlplane.repository.index(ready_only=request.ready)
        return inference_pb2.RepositoryIndexResponse(models=entries)

    async def RepositoryModelLoad(self, request: Any) -> Any:
        if request.parameters:
            raise bad_request("a load with parameters is not served", rule="a bundle says everything", status=501)
        await self._controlplane.load(request.model_name)
        return inference_pb2.RepositoryModelLoadResponse()

    async def RepositoryModelUnload(self, request: Any) -> Any:
        await self._controlplane.unload(request.model_name)
        return inference_pb2.RepositoryModelUnloadResponse()

    async def ModelInfer(self, request: Any) -> Any:
        name, version, elements_max = request.model_name, request.model_version, self._dataplane.limits.elements

        def decode(_: ServedModel) -> InferRequest:
            return decode_message(request, elements_max)

        async def decode_elsewhere(_: ServedModel) -> InferRequest:
            return await asyncio.to_thread(decode_message, request, elements_max)

        self._dataplane.admit(name, version)
        is_small = bool(request.raw_input_contents) or all(_elements(each) <= HERE_ELEMENTS for each in request.inputs)
        _, _, answer = await self._dataplane.infer(name, version, decode if is_small else decode_elsewhere)
        return encode_message(answer.model, answer.version, request.id, answer.outputs)

    async def ModelStreamInfer(self, requests: AsyncIterator[Any]) -> AsyncIterator[Any]:
        async for answer in stream_infer(requests, self.ModelInfer):
            yield answer


def add_to_server(rpc: Rpc, server: Any) -> None:
    """Put both services on a grpc.aio server."""
    inference = type("Inference", (inference_pb2_grpc.GRPCInferenceServiceServicer,), _servicer(rpc, INFERENCE_METHODS))
    health = type("Health", (health_pb2_grpc.HealthServicer,), _servicer(rpc, HEALTH_METHODS))
    inference_pb2_grpc.add_GRPCInferenceServiceServicer_to_server(inference(), server)
    health_pb2_grpc.add_HealthServicer_to_server(health(), server)


def refusal(error: Exception) -> tuple[grpc.StatusCode, str]:
    """Code and words for a client. An error that is not ours is logged, and its words stay in the log."""
    if isinstance(error, MantaError):
        return grpc.StatusCode[grpc_code_of(error)], error.message[:DETAILS_MAX]
    LOG.error("a gRPC request raised", exc_info=error)
    return grpc.StatusCode.INTERNAL, INTERNAL_ERROR


def _servicer(rpc: Rpc, names: Iterable[str]) -> dict[str, Any]:
    def bind(name: str) -> Callable[[Any, Any, Any], Awaitable[Any]]:
        async def call(_: Any, request: Any, context: Any) -> Any:
            try:
                return await rpc.answer(name, request, context)
            except Exception as error:  # noqa: BLE001 - request edge
                await context.abort(*refusal(error))

        return call

    def bind_stream(name: str) -> Callable[[Any, Any, Any], AsyncIterator[Any]]:
        async def call(_: Any, requests: Any, context: Any) -> AsyncIterator[Any]:
            try:
                async for response in rpc.stream(name, requests, context):
                    yield response
            except Exception as error:  # noqa: BLE001 - request edge
                await context.abort(*refusal(error))

        return call

    return {name: (bind_stream if name in STREAM_METHODS else bind)(name) for name in names}


async def _counted(requests: AsyncIterator[Any], seen: Seen) -> AsyncIterator[Any]:
    async for request in requests:
        seen.request_bytes += request.ByteSize()
        yield request


def _elements(tensor: Any) -> int:
    """By its shape, which is not checked yet."""
    return math.prod(tensor.shape)


def _host(peer: str) -> str:
    """The address in gRPC's name of a peer: `ipv4:10.0.0.1:4711`, `ipv6:%5B::1%5D:4711`, `unix:`."""
    return unquote(peer.partition(":")[2].rpartition(":")[0]).strip("[]")
