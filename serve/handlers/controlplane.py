"""What changes one endpoint: a new configuration, and load and unload, which reach every replica.

Invariant: tokens, the share of logged requests and the versions change together, after everything new is loaded; a
client's load or unload is done here, passed on once to each other replica, and marked for replicas that start later.

Covered: this replica, and passing on. Not covered: how a version is loaded (serve/models/repository.py), who
the other replicas are and where the mark lies (serve/deployments).
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable

from serve.access import Access, load_access
from serve.config import EndpointConfig
from serve.handlers.dataplane import DataPlane
from serve.handlers.peers import CALLER, Peers
from serve.protocol.errors import not_found, overloaded

LOAD_TIMEOUT_S = 300.0  # for another replica to load or to answer what it has accepted
Mark = Callable[[bool], Awaitable[object]]


class ControlPlane:
    """Changes one endpoint. Belongs to the event loop of its data plane."""

    def __init__(self, dataplane: DataPlane, peers: Peers | None = None, mark_unloaded: Mark | None = None) -> None:
        self.dataplane = dataplane
        self.repository = dataplane.repository
        self.peers = peers or Peers()
        """The other replicas of this endpoint."""
        self._mark_unloaded = mark_unloaded
        """Awaited before a client unloads the endpoint (True) or loads it again."""

    async def apply(self, config: EndpointConfig) -> None:
        """Serve `config`. Raises what its token files or loading its default version raised; all is then as it was."""
        access = load_access(config.spec.token_file, config.spec.admin_token_file)
        await self.repository.apply(config)
        self._follow(config, access)

    async def apply_unloaded(self, config: EndpointConfig) -> None:
        """Take `config` over without loading anything: a replica that starts after an `unload`."""
        access = load_access(config.spec.token_file, config.spec.admin_token_file)
        await self.repository.apply_unloaded(config)
        self._follow(config, access)

    async def load(self, name: str) -> None:
        """Load what is configured and not loaded, on every replica: the protocol's `load`."""
        self._check_name(name, "load")
        await self._mark(unloaded=False)
        if self.repository.config is not None:
            await self.apply(self.repository.config)
        await self._pass_on("load")

    async def unload(self, name: str) -> None:
        """Retire every version on every replica; the endpoint answers 503 until `load`."""
        self._check_name(name, "unload")
        await self._mark(unloaded=True)
        await self.repository.unload()
        await self._pass_on("unload")

    def _follow(self, config: EndpointConfig, access: Access) -> None:
        self.dataplane.access = access
        self.dataplane.cors_origins = config.spec.cors_origins
        self.dataplane.access_log.share = config.spec.access_log

    def _check_name(self, name: str, verb: str) -> None:
        if name != self.repository.name:
            raise not_found(f"failed to {verb} {name[:80]!r}: no such model")

    async def _mark(self, *, unloaded: bool) -> None:
        caller = CALLER.get()
        if self._mark_unloaded is not None and not (caller is not None and caller.is_peer):
            await self._mark_unloaded(unloaded)

    async def _pass_on(self, verb: str) -> None:
        """Raises OverloadedError naming the replicas that did not follow; this one has."""
        missing = await self.peers.pass_on(f"/v2/repository/models/{self.repository.name}/{verb}", LOAD_TIMEOUT_S)
        if missing:
            raise overloaded(
                f"replicas {', '.join(missing)} did not {verb}; the others have", reason="not_ready", retry_after_s=1
            )
