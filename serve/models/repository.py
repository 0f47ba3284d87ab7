"""The versions of one endpoint in one process: load, switch, retire.

Invariant: a version gets requests only after it is loaded, warmed up and checked; the switch is one assignment; a load
that fails leaves what was there as it was, and is remembered as UNAVAILABLE with its reason.

Covered: several versions side by side, unload, one new configuration as a whole. Not covered: who may change them, and
other replicas (serve/handlers/controlplane.py).
"""

from __future__ import annotations

import asyncio
import logging
from dataclasses import replace

from cluster.errors import MantaError
from cluster.spec.serve import QueueSpec
from serve.config import EndpointConfig, VersionConfig
from serve.models.canary import Canary
from serve.models.loading import load_engine
from serve.models.model import ServedModel
from serve.protocol.errors import bad_request, not_found, overloaded
from serve.protocol.limits import Limits

LOADING = "loading"
UNLOADED = "unloaded"
NOT_KEPT = "not among the versions that are kept loaded"
LOG = logging.getLogger(__name__)


class ModelRepository:
    """Loaded versions of one endpoint. Belongs to one event loop."""

    def __init__(self, name: str, limits: Limits) -> None:
        self.name = name
        self.config: EndpointConfig | None = None
        """What is served; None before the first `apply`."""
        self.limits = limits
        self.models: dict[str, ServedModel] = {}
        self.reasons: dict[str, str] = {}
        """version -> why it is not ready."""
        self.default: ServedModel | None = None
        """The version that unnamed requests go to; None while it loads."""
        self.canary: Canary | None = None
        """The version that gets a share of them; None where there is none, or it was not loaded."""
        self._attempted: EndpointConfig | None = None
        """A configuration that is being loaded, or whose load failed; the index lists its versions."""
        self._lock = asyncio.Lock()
        self._retiring: set[asyncio.Task[None]] = set()

    @property
    def ready(self) -> bool:
        """The version that unnamed requests go to answers."""
        return self.default is not None

    @property
    def failed(self) -> str:
        """Why this process must be replaced; empty while it is well."""
        broken = [model.engine_failure for model in self.models.values() if model.engine_failure]
        return "; ".join(broken)

    def find(self, name: str, version: str = "") -> ServedModel:
        """The model that a request names. Raises ProtocolError 404, OverloadedError while it loads."""
        if name != self.name:
            raise not_found(f"unknown model: {name[:80]!r} is not served here", remedy=f"Ask for {self.name!r}.")
        if not version:
            if self.default is None:
                raise overloaded(f"model {name!r} is not ready", reason="not_ready", retry_after_s=1)
            return self.default
        model = self.models.get(version)
        if model is None:
            if version in self.reasons:
                raise overloaded(
                    f"model {name!r} version {version} is not ready: {self.reasons[version]}",
                    reason="not_ready",
                    retry_after_s=1,
                )
            raise not_found(f"unknown version: model {name!r} has no version {version[:40]!r}")
        return model

    def route(self, name: str, version: str = "") -> ServedModel:
        """The model that answers a request: as `find`, but for the canary's share. Raises as `find`."""
        if not version and self.canary is not None and name == self.name and self.canary.takes():
            return self.canary.model
        return self.find(name, version)

    def version_asked(self, wish: str) -> str:
        """The version that a client means by `always` or `never` the canary; empty for another word."""
        chosen = {"always": self.canary.model if self.canary is not None else None, "never": self.default}.get(wish)
        return chosen.version if chosen is not None else ""

    async def apply(self, config: EndpointConfig) -> None:
        """Make the process serve `config`: load what is new, switch, retire what is gone.

        Raises what loading the new default version raised, with everything as it was. A process that serves nothing
        yet serves `config.fallback` then, where there is one; the index says why.
        """
        async with self._lock:
            self._attempted = config
            try:
                await self._load_all(config)
            except MantaError as error:
                if self.default is not None or config.fallback is None:
                    raise
                LOG.error("version %s is served instead: %s", config.fallback, error)
                proved = config.with_default(config.fallback)
                await self._load_all(proved)
                self._switch(proved, also={config.default_version})
                return
            self._attempted = None
            self._switch(config)

    async def _load_all(self, config: EndpointConfig) -> None:
        """Raises for the default version; another that cannot be loaded is left out, with the reason in the index."""
        for version in config.loaded:
            if self._is_loaded(version, config):
                continue
            try:
                await self._load(version, config)
            except MantaError:
                if version.version == config.default_version:
                    raise

    def _switch(self, config: EndpointConfig, also: frozenset[str] | set[str] = frozenset()) -> None:
        """Serve what is loaded of `config`; `also`: versions whose reasons are kept."""
        self.config = config
        for model in self.models.values():
            model.follow(config)
        self.default = self.models[config.default_version]
        self._choose_canary(config, self.default)
        keep = {version.version for version in config.loaded}
        for name in [name for name in self.models if name not in keep]:
            self._retire(self.models.pop(name))
        self.reasons = {name: why for name, why in self.reasons.items() if name in keep | also}

    def _choose_canary(self, config: EndpointConfig, stable: ServedModel) -> None:
        """One that goes on keeps what was counted of it."""
        model = self.models.get(config.canary.version) if config.canary is not None else None
        if config.canary is None or model is None:
            self.canary = None
        elif self.canary is None or (self.canary.model, self.canary.stable) != (model, stable):
            self.canary = Canary(model, stable, config.canary.percent)
        else:
            self.canary.percent = config.canary.percent

    async def apply_unloaded(self, config: EndpointConfig) -> None:
        """Take `config` over without loading anything."""
        await self.unload()
        self.config, self._attempted = config, None
        self.reasons = {version.version: UNLOADED for version in config.loaded}

    async def unload(self) -> None:
        """Retire every version; what was accepted is answered."""
        async with self._lock:
            self.default = self.canary = None
            models, self.models = list(self.models.values()), {}
            self.reasons |= {model.version: UNLOADED for model in models}
            await asyncio.gather(*(model.retire() for model in models))

    async def close(self) -> None:
        """Answer what was accepted and free the engines."""
        await self.unload()
        await asyncio.gather(*self._retiring)

    def index(self, *, ready_only: bool = False) -> list[dict[str, str]]:
        """POST v2/repository/index."""
        entries = []
        config = self._attempted or self.config
        for version in config.versions if config is not None else ():
            ready = version.version in self.models
            summary = self.canary.summary if self.canary and self.canary.model.version == version.version else ""
            reason = summary if ready else self.reasons.get(version.version, self._why_absent(version))
            state = "READY" if ready else "UNAVAILABLE"
            if ready or not ready_only:
                entries.append({"name": self.name, "version": version.version, "state": state, "reason": reason})
        return entries

    def _why_absent(self, version: VersionConfig) -> str:
        config = self._attempted or self.config
        return "loading" if config is not None and version in config.loaded else NOT_KEPT

    def _is_loaded(self, version: VersionConfig, config: EndpointConfig) -> bool:
        if version.version not in self.models:
            return False
        before = self.config
        if before is None or version not in before.versions:
            return False
        return config.engine_settings == before.engine_settings

    async def _load(self, version: VersionConfig, config: EndpointConfig) -> None:
        name = version.version
        try:
            loaded = await asyncio.to_thread(load_engine, config, version)
        except MantaError as error:
            LOG.warning("version %s of %s was not loaded: %s", name, config.name, error)
            if name not in self.models:
                self.reasons[name] = error.message
            raise
        old = self.models.get(name)
        self.models[name] = ServedModel(config, version, loaded, _with_queue(self.limits, config.spec.queue))
        self.reasons.pop(name, None)
        if old is not None:
            if self.default is old:
                self.default = self.models[name]
            self._retire(old)

    def _retire(self, model: ServedModel) -> None:
        task = asyncio.get_running_loop().create_task(model.retire())
        self._retiring.add(task)
        task.add_done_callback(self._retiring.discard)


def _with_queue(limits: Limits, queue: QueueSpec) -> Limits:
    wait_s = None if queue.max_wait_ms is None else queue.max_wait_ms / 1e3
    return replace(limits, queue_rows=queue.max_rows, queue_bytes=queue.max_mib << 20, queue_wait_s=wait_s)


def check_version(text: str) -> str:
    """A version from a path. Raises ProtocolError for what is not a whole number."""
    if not (text.isascii() and text.isdigit()):
        raise bad_request(f"version {text[:40]!r} is not a whole number")
    return text
