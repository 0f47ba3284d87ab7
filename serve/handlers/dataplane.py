"""The requests of one endpoint, whichever door they came through. Read this first.

The way of a request is `authorize` -> `admit` (before its body is decoded, over REST before it is read, so that
overload stays cheap) -> `infer`: find the version, decode, check, queue, engine, answer. A door (serve/doors) turns a
wire into these calls, and their results or the MantaError that they raise back into its wire;
serve/protocol/errors.py has the statuses and codes.

Invariant: a request that arrived whole and does not fit its model is refused before the queue, and counted once as a
`bad_request` of that version; every other request to a version has one outcome, which the batcher counts.

Covered: access, lookup, refusal, scheduling, inference, counts, the access log, metadata and statistics of the models.
Not covered: what changes an endpoint (serve/handlers/controlplane.py); sequences (501).
"""

from __future__ import annotations

import asyncio
import importlib.metadata
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from typing import Any, TypeVar

from cluster.errors import DataError, ProtocolError
from serve.access import Access
from serve.handlers.access_log import SEEN, AccessLog
from serve.models.model import ServedModel
from serve.models.repository import ModelRepository, check_version
from serve.protocol.codec import InferAnswer, InferRequest
from serve.protocol.errors import bad_request
from serve.protocol.limits import Limits

SERVER = "manta"
EXTENSIONS = (
    "binary_tensor_data",
    "classification",
    "model_configuration",
    "model_repository",
    "parameters",
    "schedule_policy",
    "statistics",
)
WRONG_REQUEST = (ProtocolError, DataError)
Request = TypeVar("Request", bound=InferRequest)
Decode = Callable[[ServedModel], Request | Awaitable[Request]]
"""A door's half of a request: its body as arrays for this model, at once or (what takes long) awaited."""


class DataPlane:
    """Answers requests to one endpoint. Belongs to one event loop."""

    def __init__(self, repository: ModelRepository, limits: Limits, replica: str = "0") -> None:
        self.repository = repository
        self.limits = limits
        self.access = Access()
        self.cors_origins: tuple[str, ...] = ()
        """Of web pages that may read answers; empty for none."""
        self.access_log = AccessLog(repository.name, replica)

    def authorize(self, authorization: str, *, admin: bool = False) -> None:
        """Raise ProtocolError 401 or 403 unless this token may do it."""
        self.access.check(authorization, admin=admin)

    def find(self, name: str, version: str = "") -> ServedModel:
        """The version that a request names. Raises ProtocolError 400, 404, OverloadedError while it loads."""
        return self.repository.find(name, check_version(version) if version else "")

    def route(self, name: str, version: str = "") -> ServedModel:
        """The version that answers a request, a canary's share apart. Raises as `find`."""
        return self.repository.route(name, check_version(version) if version else "")

    def admit(self, name: str, version: str = "") -> ServedModel:
        """The version that will answer unless another one takes its place, or the canary its share. Raises as `find`,
        and under overload."""
        model = self.find(name, version)
        model.batcher.check_room(1, 0)
        return model

    async def infer(self, name: str, version: str, decode: Decode[Request]) -> tuple[ServedModel, Request, InferAnswer]:
        """The version that answered, what `decode` made, and the answer.

        Raises ProtocolError, DataError, OverloadedError, InferenceError.
        """
        model = self.route(name, version)
        if self.access_log.share and (seen := SEEN.get()) is not None:
            seen.version = model.version
        try:  # not `counting_bad_requests`, which takes a microsecond
            found = decode(model)
            request = found if isinstance(found, InferRequest) else await found
            if request.parameters:
                check_scheduling(request)
            if model.is_large(request):
                await asyncio.to_thread(model.check, request)
            else:
                model.check(request)
        except WRONG_REQUEST:
            model.statistics.refused("bad_request")
            raise
        return model, request, await model.infer(request)

    def server_metadata(self) -> dict[str, Any]:
        """GET v2."""
        return {"name": SERVER, "version": _package_version(), "extensions": list(EXTENSIONS)}

    @property
    def ready(self) -> bool:
        """The version that unnamed requests go to answers."""
        return self.repository.ready

    def model_metadata(self, name: str, version: str = "") -> dict[str, Any]:
        """GET v2/models/M[/versions/V]."""
        return self.find(name, version).metadata(sorted(self.repository.models, key=int))

    def model_configuration(self, name: str, version: str = "") -> dict[str, Any]:
        """GET v2/models/M[/versions/V]/config: Triton's ModelConfig."""
        return self.find(name, version).configuration()

    def statistics(self, name: str = "", version: str = "") -> dict[str, Any]:
        """GET v2/models/stats and v2/models/M[/versions/V]/stats."""
        if name and version:
            chosen = [self.find(name, version)]
        else:
            if name:
                self.find(name)
            chosen = list(self.repository.models.values())
        return {"model_stats": [model.statistics.to_json() for model in chosen]}


def _package_version() -> str:
    """Of the installed package; the serving image has the code without one."""
    try:
        return importlib.metadata.version("manta-ml")
    except importlib.metadata.PackageNotFoundError:
        return "unknown"


@contextmanager
def counting_bad_requests(model: ServedModel | None) -> Iterator[None]:
    """What is raised inside because of the request is a `bad_request` of the model, where there is one."""
    try:
        yield
    except WRONG_REQUEST:
        if model is not None:
            model.statistics.refused("bad_request")
        raise


def check_scheduling(request: InferRequest) -> None:
    """Refuse what this server does not schedule: stateful sequences. Raises ProtocolError 501."""
    sequence = request.parameters.get("sequence_id", 0)
    if sequence not in (0, ""):
        raise bad_request("the request belongs to a sequence", rule="models here have no state", status=501)
