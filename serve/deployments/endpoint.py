"""Put an endpoint on a running Ray, change its version, return to another, take it away, bring all back.

An endpoint is a Ray Serve application of one deployment, with the endpoint's name, at the path `/<name>`
(application.py). Which versions it has had, and which one is to be served, lies outside of Ray (serve/rollout.py,
records.py). Host and ports are those of the first endpoint of a Ray: Ray Serve listens once for all.

A new version is copied by content, recorded as staged, loaded in a process of its own (staging.py), recorded as the
serving one, handed to Ray Serve, and settled when every replica serves it.

Invariant: `roll_out` returns only when the endpoint answers through its public port with the asked version; when it
cannot, what was served before still is, and wherever this process dies, replicas can start: what they are given either
was proved or names what served before as its fallback.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import dataclass, replace

from ray import serve as ray_serve
from ray.exceptions import RayError
from ray.serve.exceptions import RayServeException

from cluster.errors import MantaError, RequestError, summary_of
from cluster.runtime.ray_private import serve_address, start_deleting
from serve import rollout as states
from serve.access import first_token
from serve.config import EndpointConfig
from serve.deployments.application import Place, configuration, hand_over, reserved_now, wait
from serve.deployments.listening import start_serve
from serve.deployments.placement import actor_options
from serve.deployments.records import RolloutRecords, by, open_records
from serve.deployments.replica import DEPLOYMENT
from serve.deployments.signatures import check_signature
from serve.deployments.staging import prove
from serve.deployments.unloaded import remember_unloaded
from serve.rollout import By, MovedError, Rollout, way_back

LOG = logging.getLogger(__name__)
Plan = Callable[[Rollout], EndpointConfig]


@dataclass(frozen=True)
class Endpoint:
    """A live endpoint."""

    name: str
    url: str
    version: str
    replicas: int
    unchanged: bool = False
    """It served exactly this before."""
    canary_percent: float | None = None
    """The share of requests that `version` gets where it is a canary."""

    @property
    def summary(self) -> str:
        """A deploy's end, for a person."""
        if self.unchanged:
            return f"Endpoint '{self.name}' serves this bundle already, as version {self.version}: nothing has changed"
        if self.canary_percent is None:
            return f"Endpoint '{self.name}' version {self.version} answers at {self.url}"
        return (
            f"Version {self.version} is a canary of '{self.name}': it answers {self.canary_percent:g} % of the "
            f"requests at {self.url}; 'manta promote {self.name}' gives it all, 'manta rollback {self.name}' none"
        )


@dataclass(frozen=True)
class RolloutOptions:
    """How a roll-out is made."""

    token: str = ""
    """Sent with the questions; the first of the endpoint's token file when empty."""
    reason: str = ""
    """For the history."""
    force: bool = False
    """Other inputs or outputs than those of the version that serves are taken."""
    back: bool = False
    """A way back: the version that is left is not returned to."""
    progress: Callable[[str], None] = LOG.info


def deploy(config: EndpointConfig, options: RolloutOptions = RolloutOptions()) -> Endpoint:
    """Make an endpoint what `config` says, whatever it was."""
    return roll_out(config.name, lambda _: config, options)


def roll_out(name: str, plan: Plan, options: RolloutOptions = RolloutOptions()) -> Endpoint:
    """Start or change an endpoint and wait until it answers, `spec.ready_timeout_s` for each of proof and replicas.

    `plan` makes the configuration of what the endpoint has been; it is called again where another client was faster.
    Raises PortInUseError, EndpointError, RequestError, BundleError, MemoryShortError.
    """
    return _RollOut(open_records(), name, plan, options).run()


class _RollOut:
    """One change of one endpoint, from a plan to replicas that serve it."""

    def __init__(self, records: RolloutRecords, name: str, plan: Plan, options: RolloutOptions) -> None:
        self._records, self._name, self._plan, self._options = records, name, plan, options
        self._staged: str | None = None
        """The number that this change has taken for a new version."""
        self._is_proved = False

    def run(self) -> Endpoint:
        try:
            before, after, place = self._recorded()
        except BaseException as error:  # Ctrl-C too
            self._fail_staged(_reason_of(error))
            raise
        assert after.config is not None
        was_unloaded = remember_unloaded(self._name, False)
        try:
            self._carry_out(after.config, place)
        except BaseException as error:
            remember_unloaded(self._name, was_unloaded)
            self._take_back(before, after, place, _reason_of(error))
            raise
        version, replicas = after.config.subject.version, max(1, after.config.spec.replicas.min)
        unchanged = before == after and place.there == after.config
        percent = after.config.canary.percent if after.config.canary is not None else None
        return Endpoint(self._name, place.url, version, replicas, unchanged, percent)

    def _recorded(self) -> tuple[Rollout, Rollout, Place]:
        """Copy, stage and prove the version, and record it as the serving one."""
        while True:
            rollout = known(self._records, self._name)
            wanted = self._numbered(self._records.keep_all(self._plan(rollout)), rollout)
            if rollout.config is not None and not self._options.force:
                check_signature(rollout.config, wanted)
            place = self._place(wanted)
            try:
                self._stage(wanted, rollout)
                if self._is_unproved(wanted, rollout, place):
                    self._options.progress(f"loading version {wanted.subject.version} beside what is served")
                    prove(wanted, timeout_s=wanted.spec.ready_timeout_s)
                    self._is_proved = True
                before, after = self._serve(place.adjusted(wanted), rollout)
            except MovedError:
                continue
            if self._staged is not None and self._staged != wanted.subject.version:
                self._fail_staged(f"version {wanted.subject.version} has the same bundle")
            return before, after, place

    def _place(self, wanted: EndpointConfig) -> Place:
        """Start Ray Serve where it is not, and find room for the replicas; nothing is changed by what this raises."""
        token = self._options.token or first_token(wanted.spec.token_file)
        host, port = start_serve(wanted.spec)
        there, reserved = configuration(self._name), reserved_now(self._name)
        replica = actor_options(wanted, there, reserved)
        return Place(f"http://{_reachable(host)}:{port}/{self._name}", token, there, reserved, replica)

    def _numbered(self, wanted: EndpointConfig, rollout: Rollout) -> EndpointConfig:
        """With its own number where the version is the endpoint's already, else the one taken for it, or a new one."""
        record, version = rollout.find(wanted.subject.version), wanted.subject
        is_same = record is not None and record.manifest_sha256 in (None, version.manifest_sha256)
        if record is not None and is_same and record.state not in ("staged", "failed"):
            return wanted
        if record is None and self._staged is None:
            return wanted
        return wanted.numbered(self._staged or rollout.next_number)

    def _stage(self, wanted: EndpointConfig, rollout: Rollout) -> None:
        if rollout.find(wanted.subject.version) is None:
            self._records.change(self._name, lambda now: states.stage(now, wanted.subject, self._by()))
            self._staged = wanted.subject.version

    def _is_unproved(self, wanted: EndpointConfig, rollout: Rollout, place: Place) -> bool:
        """Something is served that a version never served, or engines of other settings, could harm."""
        if place.there is None or rollout.config is None or self._is_proved:
            return False
        is_new = wanted.subject.version == self._staged
        return is_new or wanted.engine_settings != rollout.config.engine_settings

    def _serve(self, config: EndpointConfig, rollout: Rollout) -> tuple[Rollout, Rollout]:
        return self._records.change(
            self._name,
            lambda now: states.serve(now, config, self._by(), instead_of=rollout.config, back=self._options.back),
        )

    def _carry_out(self, config: EndpointConfig, place: Place) -> None:
        """Hand the configuration over and wait until every replica serves it."""
        first = place.without_fewer_replicas(config)
        if first != place.there:
            self._options.progress("starting replicas")
        self._raise_if_overtaken(config)
        hand_over(first, place.replica)
        wait(first, place.url, place.token, check=lambda: self._raise_if_overtaken(config))
        before, after = self._records.change(
            self._name, lambda now: states.settle(now, self._by()) if _is_same(now.config, config) else now
        )
        if not _is_same(before.config, config) or after.config is None:
            raise _overtaken(config, before.config)
        if after.config != first:
            hand_over(after.config, place.replica)
        self._records.remove_unused_bundles()

    def _raise_if_overtaken(self, config: EndpointConfig) -> None:
        """By the record, which has one order of changes; which of two came last to Ray Serve is chance."""
        found = self._records.read(self._name).config
        if not _is_same(found, config):
            raise _overtaken(config, found)

    def _fail_staged(self, reason: str) -> None:
        staged = self._staged
        if staged is None:
            return

        def transition(now: Rollout) -> Rollout:
            record = now.find(staged)
            is_staged = record is not None and record.state == "staged"
            return states.fail(now, staged, self._by(reason)) if is_staged else now

        _, now = self._records.change(self._name, transition)
        self._note_what_serves(now)

    def _take_back(self, before: Rollout, after: Rollout, place: Place, reason: str) -> None:
        """What was served before is served again; a change that others have made since then stays."""
        assert after.config is not None
        version, config = after.config.subject.version, after.config
        _, now = self._records.change(
            self._name,
            lambda now: states.fail(now, version, self._by(reason), before=before) if now.config == config else now,
        )
        self._note_what_serves(now)
        there = configuration(self._name)
        if now.config is None:
            start_deleting(self._name)
        elif now.config == before.config:
            hand_over(now.config, place.reserved or place.replica)
        elif now.config != there:  # overtaken, and this command was the last to reach Ray Serve
            hand_over(now.config, actor_options(now.config, there, reserved_now(self._name)))

    def _note_what_serves(self, now: Rollout) -> None:
        if now.config is not None:
            self._options.progress(f"version {now.config.default_version} serves on")

    def _by(self, reason: str = "") -> By:
        return by(reason or self._options.reason)


def known(records: RolloutRecords, name: str) -> Rollout:
    """The record of an endpoint; what Ray Serve has and no record knows, of an older Manta, is taken over first."""
    there, rollout = configuration(name), records.read(name)
    if there is None:
        return rollout
    record = rollout.find(there.default_version)
    if record is not None and record.manifest_sha256 in (None, there.default.manifest_sha256):
        return rollout
    return records.change(name, lambda now: states.adopt(now, there, by("found on the cluster")))[1]


def rollback(name: str, to: str | None = None, options: RolloutOptions = RolloutOptions()) -> Endpoint:
    """Return an endpoint to the version that it served well before, or to another one. Raises as `roll_out`."""

    def plan(rollout: Rollout) -> EndpointConfig:
        version = way_back(rollout, to)
        assert rollout.config is not None
        return rollout.config.with_default(version)

    return roll_out(name, plan, replace(options, back=True, force=True))


def promote(name: str, options: RolloutOptions = RolloutOptions()) -> Endpoint:
    """Make the canary the serving version. Raises as `roll_out`."""
    return roll_out(name, states.promoted, options)


def restore(name: str, options: RolloutOptions = RolloutOptions()) -> Endpoint:
    """Bring an endpoint back that is recorded and that this Ray does not have, as it was. Raises as `roll_out`."""

    def plan(rollout: Rollout) -> EndpointConfig:
        if rollout.config is None:
            raise RequestError(f"Cannot restore '{name}'", found="no such endpoint is recorded")
        return rollout.config

    return roll_out(name, plan, options)


def restore_all(name: str | None, options: RolloutOptions) -> list[Endpoint]:
    """Restore all endpoints that are missing, or the one of this name. Raises RequestError for an unknown name."""
    records = open_records()
    recorded = [each for each in records.names() if records.read(each).config is not None]
    elsewhere = ", ".join(records.others())
    if name is not None and name not in recorded:
        raise RequestError(
            f"Cannot restore endpoint '{name}'",
            found=f"{records.folder} records {', '.join(recorded) or 'none'}",
            remedy=f"Records of other heads beside it: {elsewhere}." if elsewhere else "",
        )
    if not recorded and elsewhere:
        LOG.warning(
            "%s records no endpoint; if the head has a new address, rename the folder of its old one, of %s",
            records.folder,
            elsewhere,
        )
    return [restore(each, options) for each in to_restore() if name in (None, each)]


def to_restore() -> list[str]:
    """Endpoints that are recorded as served and that this Ray does not have."""
    records = open_records()
    have = set(ray_serve.status().applications) if serve_address() is not None else set()
    return [name for name in records.names() if name not in have and records.read(name).config is not None]


def history(name: str) -> Rollout:
    """What is recorded of an endpoint. Raises RequestError for an unknown name."""
    rollout = known(open_records(), name)
    if not rollout.revision:
        raise RequestError(f"Cannot find endpoint '{name}'", found="nothing is recorded of it")
    return rollout


def endpoints() -> list[Endpoint]:
    """Endpoints of this Ray."""
    address = serve_address()
    if address is None:
        return []
    found = []
    for name, application in ray_serve.status().applications.items():
        config = configuration(name)
        states = application.deployments[DEPLOYMENT].replica_states if DEPLOYMENT in application.deployments else {}
        running = next((count for state, count in states.items() if str(state).endswith("RUNNING")), 0)
        url = f"http://{_reachable(address[0])}:{address[1]}/{name}"
        found.append(Endpoint(name, url, config.default_version if config else "", running))
    return found


def undeploy(name: str) -> None:
    """Take an endpoint away. Raises RequestError for an unknown name."""
    records = open_records()
    have = sorted(ray_serve.status().applications) if serve_address() is not None else []
    if name not in have and records.read(name).config is None:
        raise RequestError(
            f"Cannot undeploy '{name}'",
            found="there is no such endpoint",
            remedy=f"Endpoints here: {', '.join(have) or 'none'}.",
        )
    if records.read(name).config is not None:
        records.change(name, lambda now: states.undeploy(now, by()))
    if name in have:
        ray_serve.delete(name)
    remember_unloaded(name, False)


def still_serves() -> bool:
    """Whether an endpoint is left on this Ray; True while Ray Serve cannot say, because its controller restarts."""
    try:
        return serve_address() is not None and bool(ray_serve.status().applications)
    except (RayError, RayServeException):
        return True


def _reachable(host: str) -> str:
    return "127.0.0.1" if host in ("0.0.0.0", "", "::") else host


def _is_same(found: EndpointConfig | None, config: EndpointConfig) -> bool:
    """Whether they differ at most in what another command for the same has settled already."""
    return found is not None and found.model_copy(update={"fallback": config.fallback}) == config


def _overtaken(config: EndpointConfig, found: EndpointConfig | None) -> RequestError:
    """The end of a command whose endpoint another command has changed meanwhile."""
    what = f"deployed version {found.subject.version}" if found is not None else "taken the endpoint away"
    return RequestError(
        f"Cannot deploy version {config.subject.version} of '{config.name}'",
        found=f"another command has {what} meanwhile",
        remedy=f"'manta endpoints {config.name} --history' shows who.",
    )


def _reason_of(error: BaseException) -> str:
    """An error as the reason of a failed version."""
    return error.found if isinstance(error, MantaError) else summary_of(error)
