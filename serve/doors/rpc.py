"""The gRPC door: the same handler's models, batcher and errors behind `inference.GRPCInferenceService` and health.

`Rpc` has one coroutine a method and knows no server: `python -m serve` puts it on grpc.aio, Ray Serve calls it as
methods of the replica. Invariant: tensors are all raw or all in `contents`, never mixed; every failure is a
MantaError whose code is `grpc_code_of`.

Covered: the protocol's methods, a stream of requests, configuration, statistics, repository. Not covered: more than
one answer to a request, shared memory, trace and log settings: UNIMPLEMENTED.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any
from urllib.parse import unquote

import grpc
import numpy as np
import orjson

from cluster.bundle.signature import DATATYPE_OF
from cluster.errors import MantaError
from serve.access import from_metadata
from serve.doors.access_log import AccessRecords, Seen
from serve.doors.streaming import stream_infer
from serve.handler import Handler, check_scheduling
from serve.peers import CALLER, Caller
from serve.problems import INTERNAL_ERROR, bad_request, grpc_code_of
from serve.proto import health_pb2, health_pb2_grpc, inference_pb2, inference_pb2_grpc
from serve.protocol.codec import InferRequest, RequestedOutput
from serve.protocol.tensors import array_of_bytes, array_of_json, bytes_of_array, check_shape
from serve.repository import check_version

LOG = logging.getLogger(__name__)
CONTENTS_OF = {
    "BOOL": "bool_contents",
    "INT8": "int_contents",
    "INT16": "int_contents",
    "INT32": "int_contents",
    "INT64": "int64_contents",
    "UINT8": "uint_contents",
    "UINT16": "uint_contents",
    "UINT32": "uint_contents",
    "UINT64": "uint64_contents",
    "FP32": "fp32_contents",
    "FP64": "fp64_contents",
    "BYTES": "bytes_contents",
}
MESSAGE_BYTES_MAX = 128 << 20
INFERENCE, HEALTH = "inference.GRPCInferenceService", "grpc.health.v1.Health"
INFERENCE_METHODS = tuple(inference_pb2.DESCRIPTOR.services_by_name["GRPCInferenceService"].methods_by_name)
STREAM_METHODS = ("ModelStreamInfer",)
HEALTH_METHODS = ("Check",)
OPEN_METHODS = ("Check", "ServerLive", "ServerReady")
DETAILS_MAX = 2000  # characters: HTTP/2 trailers with more than 8 KiB are refused by many clients


class Rpc:
    """Every method takes a request message and returns a response message, or raises MantaError."""

    def __init__(self, handler: Handler, records: AccessRecords | None = None) -> None:
        self.handler = handler
        self.repository = handler.repository
        self._records = records or AccessRecords(lambda: 0.0, handler.repository.name)

    async def answer(self, name: str, request: Any, context: Any) -> Any:
        """The response message to a call of method `name`, authorized and logged. Raises MantaError."""
        with self._logged(name, context) as seen:
            self._authorize(name, context.invocation_metadata() or ())
            response = await getattr(self, name)(request)
            seen.request_bytes, seen.response_bytes = request.ByteSize(), response.ByteSize()
            return response

    async def stream(self, name: str, requests: AsyncIterator[Any], context: Any) -> AsyncIterator[Any]:
        """The same for a method that takes and gives a stream."""
        with self._logged(name, context) as seen:
            self._authorize(name, context.invocation_metadata() or ())
            async for response in getattr(self, name)(_counted(requests, seen)):
                seen.response_bytes += response.ByteSize()
                yield response

    @contextmanager
    def _logged(self, name: str, context: Any) -> Iterator[Seen]:
        seen = Seen("INTERNAL")
        if not self._records.sampled():
            yield seen
            return
        path = f"/{HEALTH if name in HEALTH_METHODS else INFERENCE}/{name}"
        with self._records.line(_host(context.peer()), "gRPC", path, seen):
            try:
                yield seen
            except MantaError as error:
                seen.status = grpc_code_of(error)
                raise
            except (asyncio.CancelledError, GeneratorExit):
                seen.status = "CANCELLED"
                raise
            seen.status = "OK"

    def _authorize(self, name: str, metadata: Iterable[tuple[str, str | bytes]]) -> None:
        """Raise ProtocolError 401 or 403 unless the call may go on. Health and liveness need no token."""
        if name not in OPEN_METHODS:
            is_admin = name in ("RepositoryModelLoad", "RepositoryModelUnload")
            authorization = from_metadata(metadata)
            self.repository.access.check(authorization, admin=is_admin)
            CALLER.set(Caller(authorization))

    async def Check(self, request: Any) -> Any:
        """grpc.health.v1: the server for an empty name, else the model of that name."""
        if request.service in ("", self.repository.name, INFERENCE):
            states = health_pb2.HealthCheckResponse
            return states(status=states.SERVING if self.repository.ready else states.NOT_SERVING)
        raise bad_request(f"unknown service {request.service[:80]!r}", status=404)

    async def ServerLive(self, request: Any) -> Any:
        return inference_pb2.ServerLiveResponse(live=True)

    async def ServerReady(self, request: Any) -> Any:
        return inference_pb2.ServerReadyResponse(ready=self.repository.ready)

    async def ModelReady(self, request: Any) -> Any:
        try:
            self._find(request.name, request.version)
        except MantaError:
            return inference_pb2.ModelReadyResponse(ready=False)
        return inference_pb2.ModelReadyResponse(ready=True)

    async def ServerMetadata(self, request: Any) -> Any:
        return inference_pb2.ServerMetadataResponse(**await self._json("GET", []))

    async def ModelMetadata(self, request: Any) -> Any:
        model = self._find(request.name, request.version)
        return inference_pb2.ModelMetadataResponse(**model.metadata(sorted(self.repository.models, key=int)))

    async def ModelConfig(self, request: Any) -> Any:
        raw = self._find(request.name, request.version).configuration()
        return inference_pb2.ModelConfigResponse(config=_known_fields(inference_pb2.ModelConfig, raw))

    async def ModelStatistics(self, request: Any) -> Any:
        raw = self.repository.statistics(request.name, request.version)
        entries = [_known_fields(inference_pb2.ModelStatistics, entry) for entry in raw["model_stats"]]
        return inference_pb2.ModelStatisticsResponse(model_stats=entries)

    async def RepositoryIndex(self, request: Any) -> Any:
        entries = self.repository.index(ready_only=request.ready)
        return inference_pb2.RepositoryIndexResponse(models=entries)

    async def RepositoryModelLoad(self, request: Any) -> Any:
        if request.parameters:
            raise bad_request("a load with parameters is not served", rule="a bundle says everything", status=501)
        await self.repository.load(request.model_name)
        return inference_pb2.RepositoryModelLoadResponse()

    async def RepositoryModelUnload(self, request: Any) -> Any:
        await self.repository.unload(request.model_name)
        return inference_pb2.RepositoryModelUnloadResponse()

    async def ModelInfer(self, request: Any) -> Any:
        model = self._find(request.model_name, request.model_version)
        decoded = decode_message(request, self.handler.limits.elements)
        check_scheduling(decoded)
        answer = await model.infer(decoded)
        return encode_message(answer.model, answer.version, request.id, answer.outputs)

    async def ModelStreamInfer(self, requests: AsyncIterator[Any]) -> AsyncIterator[Any]:
        async for answer in stream_infer(requests, self.ModelInfer):
            yield answer

    def _find(self, name: str, version: str) -> Any:
        return self.repository.find(name, check_version(version) if version else "")

    async def _json(self, method: str, segments: list[str]) -> dict[str, Any]:
        answer = await self.handler.other(method, segments, b"")
        found: dict[str, Any] = orjson.loads(answer.body)
        return found


def decode_message(request: Any, elements_max: int) -> InferRequest:
    """A ModelInferRequest as arrays. Raises ProtocolError."""
    raw: Sequence[bytes] = request.raw_input_contents
    if raw and len(raw) != len(request.inputs):
        raise bad_request(f"{len(raw)} raw contents for {len(request.inputs)} inputs", rule="one for each input")
    if not request.inputs:
        raise bad_request("the request has no inputs")
    inputs: dict[str, np.ndarray] = {}
    for index, tensor in enumerate(request.inputs):
        name = tensor.name
        if not name or "\0" in name or name in inputs:
            raise bad_request(f"an input's name is {name[:40]!r}", rule="names are not empty, and each comes once")
        shape = check_shape(list(tensor.shape), name, elements_max)
        if "shared_memory_region" in tensor.parameters:
            raise bad_request(f"input {name!r} lies in shared memory", rule="it is not served", status=501)
        if raw:
            if tensor.HasField("contents"):
                raise bad_request(f"input {name!r} has contents beside raw contents", rule="all raw, or none")
            inputs[name] = array_of_bytes(raw[index], tensor.datatype, shape, name)
        else:
            inputs[name] = _array_of_contents(tensor, shape)
    parameters = _parameters(request.parameters)
    return InferRequest(
        inputs=inputs,
        outputs=_outputs(request.outputs),
        id=request.id or None,
        priority=_count(parameters.get("priority", 0), "priority"),
        timeout_us=_count(parameters.get("timeout", 0), "timeout"),
        parameters=parameters,
    )


def encode_message(model: str, version: str, identity: str, outputs: Mapping[str, np.ndarray]) -> Any:
    """A ModelInferResponse with raw contents."""
    message = inference_pb2.ModelInferResponse(model_name=model, model_version=version, id=identity)
    for name, array in outputs.items():
        datatype = DATATYPE_OF[array.dtype]
        message.outputs.add(name=name, datatype=datatype, shape=array.shape)
        message.raw_output_contents.append(bytes_of_array(array, datatype))
    return message


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


def _host(peer: str) -> str:
    """The address in gRPC's name of a peer: `ipv4:10.0.0.1:4711`, `ipv6:%5B::1%5D:4711`, `unix:`."""
    return unquote(peer.partition(":")[2].rpartition(":")[0]).strip("[]")


def _array_of_contents(tensor: Any, shape: tuple[int, ...]) -> np.ndarray:
    field = CONTENTS_OF.get(tensor.datatype)
    if field is None:
        raise bad_request(
            f"input {tensor.name!r} is {tensor.datatype[:40]} in contents", rule="it needs raw_input_contents"
        )
    values = list(getattr(tensor.contents, field))
    if tensor.datatype == "BYTES":
        found = np.empty(len(values), dtype=object)
        found[:] = values
        if len(values) != int(np.prod(shape, dtype=np.int64)):
            raise bad_request(f"input {tensor.name!r} has {len(values)} values", rule=f"its shape is {list(shape)}")
        return found.reshape(shape)
    return array_of_json(values, tensor.datatype, shape, tensor.name, flags=False)


def _outputs(entries: Iterable[Any]) -> tuple[RequestedOutput, ...]:
    found: dict[str, RequestedOutput] = {}
    for entry in entries:
        if entry.name in found:
            raise bad_request(f"output {entry.name[:80]!r} is asked for twice")
        parameters = _parameters(entry.parameters)
        if "shared_memory_region" in parameters:
            raise bad_request(f"output {entry.name[:80]!r} is asked for in shared memory", status=501)
        found[entry.name] = RequestedOutput(entry.name, classes=_count(parameters.get("classification", 0), "top-k"))
    return tuple(found.values())


def _parameters(entries: Mapping[str, Any]) -> dict[str, Any]:
    found = {}
    for key, value in entries.items():
        choice = value.WhichOneof("parameter_choice")
        if choice is not None:
            found[key] = getattr(value, choice)
    return found


def _count(value: Any, what: str) -> int:
    if isinstance(value, bool) or not isinstance(value, int) or value < 0:
        raise bad_request(f"{what} is {str(value)[:40]!r}", rule="it must be a whole number, 0 or more")
    return value


def _known_fields(message: Any, raw: Mapping[str, Any]) -> Any:
    """A message from JSON-able values; keys that the message lacks are left out."""
    from google.protobuf.json_format import ParseDict

    return ParseDict(dict(raw), message(), ignore_unknown_fields=True)
