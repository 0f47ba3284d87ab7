"""The one deployment of an endpoint: the model lives in the ingress replica, behind uvicorn and HAProxy.

A request goes client -> HAProxy -> uvicorn in this process -> `AsgiDoor`; no actor call, no pickling, no second hop.
Invariant: a replica is healthy only with a version that is loaded, warmed up and checked; a new configuration that
cannot be loaded leaves the replica as it was, with the reason in the repository index.
"""

from __future__ import annotations

import asyncio
import logging
import sys
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

from ray import serve as ray_serve

from cluster.errors import EndpointError, MantaError
from serve.batching.batcher import SWITCH_INTERVAL_S
from serve.config import EndpointConfig
from serve.deployments.middleware import take_infer_requests
from serve.deployments.peer_discovery import access_file, endpoint_peers
from serve.deployments.scaling import BUSY, LATENCY_S, LOOK_BACK_S, OLDEST_WAIT_S, QUEUED_ROWS
from serve.deployments.unloaded import is_unloaded, remember_unloaded
from serve.doors.asgi import AsgiDoor
from serve.doors.predict import predict_app
from serve.doors.rpc import HEALTH_METHODS, INFERENCE_METHODS, STREAM_METHODS, Rpc, refusal
from serve.handlers.access_log import open_access_log
from serve.handlers.controlplane import ControlPlane
from serve.handlers.dataplane import DataPlane
from serve.models.repository import ModelRepository
from serve.proto.inference_pb2 import ServerLiveResponse
from serve.protocol.limits import Limits

LOG = logging.getLogger(__name__)
DEPLOYMENT = "replica"
NO_MESSAGE = ServerLiveResponse()
MARK_LOOKS_S = (0.0, 1.0, 1.0, 2.0, 4.0, 8.0, 16.0)  # after a start; Ray Serve lists a replica after about a second


class EndpointReplica:
    """State of one replica. Ray Serve calls every method on the replica's event loop."""

    def __init__(self, name: str) -> None:
        sys.setswitchinterval(SWITCH_INTERVAL_S)
        limits = Limits()
        peers = endpoint_peers(name)
        self.repository = ModelRepository(name, limits)
        self.dataplane = DataPlane(self.repository, limits, peers.replica)
        self.controlplane = ControlPlane(self.dataplane, peers, self._mark_unloaded)
        self.rpc = Rpc(self.dataplane, self.controlplane)
        self._following: asyncio.Task[None] | None = None
        self._told_at_ns = time.perf_counter_ns()
        self._told_engine_ns = 0

    def __serve_build_asgi_app__(self) -> AsgiDoor:
        door = AsgiDoor(self.dataplane, self.controlplane, predict_app(self.dataplane, self.controlplane))
        open_access_log(access_file(self.repository.name))
        take_infer_requests(door, self.repository.name)
        return door

    async def reconfigure(self, user_config: dict[str, Any]) -> None:
        """Serve what the configuration says, or wait for `load` where a client has unloaded the endpoint.

        Raises only while nothing is served yet.
        """
        config = EndpointConfig.from_json(user_config)
        if await asyncio.to_thread(is_unloaded, config.name):
            await self.controlplane.apply_unloaded(config)
        else:
            await self._apply(config)
        if self._following is not None:
            self._following.cancel()
        self._following = asyncio.get_running_loop().create_task(self._follow(config))

    async def _mark_unloaded(self, unloaded: bool) -> None:
        await asyncio.to_thread(remember_unloaded, self.repository.name, unloaded)

    async def _apply(self, config: EndpointConfig) -> None:
        try:
            await self.controlplane.apply(config)
        except MantaError as error:
            if not self.repository.ready:
                raise
            LOG.error("kept the old versions: %s", error)

    async def _follow(self, config: EndpointConfig) -> None:
        """A load or unload that came while this replica started was passed on to the others alone: ask for the mark."""
        for delay_s in MARK_LOOKS_S:
            await asyncio.sleep(delay_s)
            unloaded = await asyncio.to_thread(is_unloaded, config.name)
            if unloaded and self.repository.ready:
                await self.repository.unload()
            elif not unloaded and not self.repository.ready:
                try:
                    await self.controlplane.apply(config)
                except MantaError as error:  # the index says why
                    LOG.error("could not load again: %s", error)

    def record_autoscaling_stats(self) -> dict[str, float]:
        """What the scaling policy decides on (serve/deployments/scaling.py); Ray Serve calls it about once a second."""
        models = list(self.repository.models.values())
        now_ns, engine_ns = time.perf_counter_ns(), sum(model.statistics.engine_ns for model in models)
        span_ns = max(now_ns - self._told_at_ns, 1)
        busy = max(0.0, engine_ns - self._told_engine_ns) / span_ns
        self._told_at_ns, self._told_engine_ns = now_ns, engine_ns
        return {
            BUSY: min(1.0, busy),
            OLDEST_WAIT_S: max((model.batcher.oldest_wait_s for model in models), default=0.0),
            QUEUED_ROWS: float(sum(model.batcher.queued_rows for model in models)),
            LATENCY_S: max((model.statistics.recent_latency_s(LOOK_BACK_S) for model in models), default=0.0),
        }

    def check_health(self) -> None:
        """Ray Serve replaces a replica whose check raises three times."""
        if self.repository.failed:
            raise EndpointError("Cannot keep this replica", found=self.repository.failed)


def _rpc_method(name: str) -> Callable[..., Awaitable[Any]]:
    """Ray Serve calls the replica's method of an RPC's name, and gives it the context by this keyword.

    A refusal is a code on the context and not an exception: Ray Serve would write a traceback for each into its log,
    and send an unknown exception's words to the client. gRPC sends no message beside a code that is not OK.
    """

    async def call(self: EndpointReplica, request: Any, grpc_context: Any) -> Any:
        try:
            return await self.rpc.answer(name, request, grpc_context)
        except Exception as error:  # noqa: BLE001 - request edge
            _refuse(grpc_context, error)
            return NO_MESSAGE

    call.__name__ = name
    return call


def _stream_method(name: str) -> Callable[..., AsyncIterator[Any]]:
    """The same for a stream: Ray Serve calls a generator with the requests as they come."""

    async def call(self: EndpointReplica, requests: Any, grpc_context: Any) -> AsyncIterator[Any]:
        try:
            async for answer in self.rpc.stream(name, requests, grpc_context):
                yield answer
        except Exception as error:  # noqa: BLE001 - request edge
            # raised, because a stream's context does not reach the client through Ray Serve's fallback proxy
            words = _refuse(grpc_context, error)
            raise EndpointError("Cannot answer the stream", found=words) from None

    call.__name__ = name
    return call


def _refuse(context: Any, error: Exception) -> str:
    """Put the error's code and words on a call's context; returns the words."""
    code, words = refusal(error)
    context.set_code(code)
    context.set_details(words)
    return words


for _name in (*INFERENCE_METHODS, *HEALTH_METHODS):
    setattr(EndpointReplica, _name, (_stream_method if _name in STREAM_METHODS else _rpc_method)(_name))


def endpoint_deployment() -> Any:
    """The Ray Serve deployment class, without options."""
    return ray_serve.deployment(name=DEPLOYMENT)(ray_serve.ingress()(EndpointReplica))
