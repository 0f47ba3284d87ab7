"""The one deployment of an endpoint: the model lives in the ingress replica, behind uvicorn and HAProxy.

A request goes client -> HAProxy -> uvicorn in this process -> `AsgiDoor`; no actor call, no pickling, no second hop.
Invariant: a replica is healthy only with a version that is loaded, warmed up and checked; a new configuration that
cannot be loaded leaves the replica as it was, with the reason in the repository index.
"""

from __future__ import annotations

import logging
from typing import Any

from ray import serve as ray_serve

from cluster.errors import EndpointError, MantaError
from serve.asgi import AsgiDoor
from serve.config import EndpointConfig
from serve.handler import Handler
from serve.human import build_human_side
from serve.limits import Limits
from serve.repository import Repository

LOG = logging.getLogger(__name__)
DEPLOYMENT = "replica"


class EndpointReplica:
    """State of one replica. Ray Serve calls every method on the replica's event loop."""

    def __init__(self, name: str) -> None:
        limits = Limits()
        self.repository = Repository(name, limits)
        self.handler = Handler(self.repository, limits)

    def __serve_build_asgi_app__(self) -> AsgiDoor:
        return AsgiDoor(self.handler, build_human_side(self.handler))

    async def reconfigure(self, user_config: dict[str, Any]) -> None:
        """Serve what the configuration says. Raises only while nothing is served yet."""
        config = EndpointConfig.from_json(user_config)
        try:
            await self.repository.apply(config)
        except MantaError as error:
            if not self.repository.ready:
                raise
            LOG.error("kept the old versions: %s", error)

    def check_health(self) -> None:
        """Ray Serve replaces a replica whose check raises three times."""
        if self.repository.failed:
            raise EndpointError("Cannot keep this replica", found=self.repository.failed)


def endpoint_deployment() -> Any:
    """The Ray Serve deployment class, without options."""
    return ray_serve.deployment(name=DEPLOYMENT)(ray_serve.ingress()(EndpointReplica))
