"""The life of an endpoint's versions: what each may become, who decided it, and which one replicas are to serve.

```
staged ──> canary ──> serving ──> draining ──> retired ──> serving (rolled back to, or deployed again)
   └─────────┴──────────┴──> failed (for ever, with the reason)
```

A `Rollout` is the whole truth of one endpoint as one frozen value; a transition is a pure function from one to the
next, and its `revision` grows by one. serve/deployments/records.py writes them, compare-and-set.

Invariant: exactly one version is `serving` while `config` is not null, and it is the configuration's default; a version
that is staged or failed is in no configuration; `failed` is left by nobody.

Covered: states, numbers, the way back. Not covered: loading and traffic (serve/deployments/endpoint.py).
"""

from __future__ import annotations

from typing import Literal

from cluster.errors import RequestError
from cluster.spec.base import StrictSpec
from serve.config import EndpointConfig, VersionConfig

State = Literal["staged", "canary", "serving", "draining", "retired", "failed"]
NEXT: dict[State, tuple[State, ...]] = {
    "staged": ("canary", "serving", "failed"),
    "canary": ("serving", "retired", "failed"),
    "serving": ("draining", "failed"),
    "draining": ("retired", "serving"),
    "retired": ("canary", "serving"),
    "failed": (),
}
CHANGES_MAX = 1000  # of an endpoint's history; a failed version keeps its reason beside that


class By(StrictSpec):
    """Who changes something, when, and why."""

    author: str
    unix_s: float
    reason: str = ""


class VersionRecord(StrictSpec):
    """One version and its state."""

    version: str
    state: State
    bundle: str
    """The folder that was deployed."""
    manifest_sha256: str | None
    variant: str | None
    by: By
    """Of the last change."""


class Change(StrictSpec):
    """One line of history."""

    revision: int
    version: str
    state: State | Literal["undeployed"]
    by: By


class Rollout(StrictSpec):
    """One endpoint: what its replicas are to serve, and how it came to that."""

    name: str
    revision: int = 0
    config: EndpointConfig | None = None
    """What is to be served; null before the first deploy and after undeploy."""
    served: tuple[str, ...] = ()
    """The versions to return to, oldest first, and the serving one last. A roll-back takes the last one off."""
    versions: tuple[VersionRecord, ...] = ()
    changes: tuple[Change, ...] = ()

    def find(self, version: str) -> VersionRecord | None:
        """The record of a version."""
        return next((each for each in self.versions if each.version == version), None)

    @property
    def next_number(self) -> str:
        """Of a new version: numbers of failed ones do not return."""
        return str(max((int(each.version) for each in self.versions), default=0) + 1)


class MovedError(Exception):
    """Another client has changed the endpoint since it was read: decide anew. No user sees it."""


def adopt(rollout: Rollout, config: EndpointConfig, by: By) -> Rollout:
    """Take over an endpoint whose configuration this record does not have: of an older Manta."""
    have = [version.version for version in config.versions]
    place = have.index(config.default_version)
    records = tuple(
        _record(each, "serving" if each.version == config.default_version else "retired", by)
        for each in config.versions
    )
    gone = tuple(each for each in rollout.versions if each.version not in have)
    known = rollout.model_copy(
        update={"config": config, "versions": (*gone, *records), "served": tuple(have[: place + 1])}
    )
    return _noted(known, config.default_version, "serving", by)


def stage(rollout: Rollout, version: VersionConfig, by: By) -> Rollout:
    """A version that no request reaches: it is loaded beside what is served. Raises MovedError for a taken number."""
    if rollout.find(version.version) is not None:
        raise MovedError(rollout.name)
    new = rollout.model_copy(update={"versions": (*rollout.versions, _record(version, "staged", by))})
    return _noted(new, version.version, "staged", by)


def serve(
    rollout: Rollout, config: EndpointConfig, by: By, *, instead_of: EndpointConfig | None, back: bool = False
) -> Rollout:
    """The configuration's default version becomes the serving one, its canary the canary; what served before drains.

    `instead_of`: the configuration from which `config` was made. Raises MovedError where another one is served by now.
    `back`: a way back, which forgets the versions that it leaves.
    """
    if rollout.config != instead_of:
        raise MovedError(rollout.name)
    if config == rollout.config:
        return rollout
    version = config.default_version
    for each in config.versions:
        if rollout.find(each.version) is None:
            rollout = rollout.model_copy(update={"versions": (*rollout.versions, _record(each, "retired", by))})
    before = rollout.config.default_version if rollout.config is not None else None
    canary = config.canary.version if config.canary is not None else None
    for tried in [each.version for each in rollout.versions if each.state == "canary"]:
        if tried not in (version, canary):
            rollout = _moved_to(rollout, tried, "retired", by)
    if before is not None and before != version:
        rollout = _moved_to(rollout, before, "draining", by)
    if before != version:
        rollout = _moved_to(rollout, version, "serving", by)
    if canary is not None and (record := rollout.find(canary)) is not None and record.state != "canary":
        rollout = _moved_to(rollout, canary, "canary", by)
    served = _left(rollout.served, version) if back else tuple(each for each in rollout.served if each != version)
    known = {each.version for each in config.versions}
    kept = tuple(each for each in served if each in known)
    return _next(rollout, config=config, served=(*kept, version))


def settle(rollout: Rollout, by: By) -> Rollout:
    """Every replica serves the new version: what drained is retired, and nothing is kept to fall back to."""
    config = rollout.config.model_copy(update={"fallback": None}) if rollout.config is not None else None
    draining = [each.version for each in rollout.versions if each.state == "draining"]
    if not draining and config == rollout.config:
        return rollout
    for version in draining:
        rollout = _moved_to(rollout, version, "retired", by)
    return _next(rollout, config=config)


def fail(rollout: Rollout, version: str, by: By, *, before: Rollout | None = None) -> Rollout:
    """A version that cannot be served. One that serves already gives its place back to what `before` served."""
    record = rollout.find(version)
    if record is None or record.state == "failed":
        return rollout
    was_serving = rollout.config is not None and rollout.config.default_version == version
    if not was_serving:
        config = before.config if record.state == "canary" and before is not None else rollout.config
        return _next(_moved_to(rollout, version, "failed", by), config=config)
    had = before.find(version) if before is not None else None
    if had is None or had.state not in ("retired", "serving"):  # a version that has served well stays one to return to
        rollout = _moved_to(rollout, version, "failed", by)
    elif had.state == "retired":
        rollout = _put(_put(rollout, version, "draining", by), version, "retired", by)
    config = before.config if before is not None else None
    if config is not None and config.default_version != version:
        rollout = _moved_to(rollout, config.default_version, "serving", by)
    return _next(rollout, config=config, served=before.served if before is not None and config is not None else ())


def undeploy(rollout: Rollout, by: By) -> Rollout:
    """The endpoint is taken away: its versions end, its history stays, and a later endpoint of the name begins at 1."""
    version = rollout.config.default_version if rollout.config is not None else ""
    gone = rollout.model_copy(update={"config": None, "served": (), "versions": ()})
    return _noted(gone, version, "undeployed", by)


def way_back(rollout: Rollout, to: str | None = None) -> str:
    """The version that `manta rollback` returns to: the one served before, never one that was fled from; while there is
    a canary, the one that serves beside it.

    Raises RequestError where there is none, and for a `to` that is failed or unknown.
    """
    attempted = f"Cannot roll '{rollout.name}' back"
    if rollout.config is None:
        raise RequestError(attempted, found="there is no such endpoint", remedy="'manta endpoints' lists endpoints.")
    now = rollout.config.default_version
    if to is None and rollout.config.canary is not None:
        return now
    if to is None:
        if len(rollout.served) < 2:
            raise RequestError(
                attempted,
                found=f"version {now} is its first"
                if len(rollout.versions) < 2
                else f"it serves version {now}, and no version served well before it",
                remedy=f"'manta endpoints {rollout.name} --history' lists its versions; --to VERSION chooses one.",
            )
        return rollout.served[-2]
    have = {each.version for each in rollout.config.versions}
    if to not in have:
        record = rollout.find(to)
        why = f"version {to} failed: {record.by.reason}" if record is not None and record.state == "failed" else ""
        raise RequestError(
            f"{attempted} to version {to}",
            found=why or f"it has versions {', '.join(sorted(have, key=int))}",
            remedy=f"'manta endpoints {rollout.name} --history' lists its versions.",
        )
    return to


def promoted(rollout: Rollout) -> EndpointConfig:
    """The configuration in which the canary is the default version. Raises RequestError where there is none."""
    if rollout.config is None or rollout.config.canary is None:
        raise RequestError(
            f"Cannot promote a canary of '{rollout.name}'",
            found="it has none",
            remedy="'manta deploy BUNDLE --canary 5%' starts one.",
        )
    return rollout.config.with_default(rollout.config.canary.version)


def _record(version: VersionConfig, state: State, by: By) -> VersionRecord:
    return VersionRecord(
        version=version.version,
        state=state,
        bundle=version.bundle,
        manifest_sha256=version.manifest_sha256,
        variant=version.variant,
        by=by,
    )


def _moved_to(rollout: Rollout, version: str, state: State, by: By) -> Rollout:
    """Change one version's state. Raises RequestError for a step that is not in the table."""
    record = rollout.find(version)
    if record is None or state not in NEXT[record.state]:
        raise RequestError(
            f"Cannot make version {version} of '{rollout.name}' {state}",
            found=f"it is {record.state}" if record is not None else "there is no such version",
            rule=f"from there it may become {', '.join(NEXT[record.state]) or 'nothing'}" if record else "",
        )
    return _put(rollout, version, state, by)


def _put(rollout: Rollout, version: str, state: State, by: By) -> Rollout:
    versions = tuple(
        each.model_copy(update={"state": state, "by": by}) if each.version == version else each
        for each in rollout.versions
    )
    return _with_change(rollout.model_copy(update={"versions": versions}), version, state, by)


def _with_change(rollout: Rollout, version: str, state: State | Literal["undeployed"], by: By) -> Rollout:
    change = Change(revision=rollout.revision + 1, version=version, state=state, by=by)
    return rollout.model_copy(update={"changes": (*rollout.changes, change)[-CHANGES_MAX:]})


def _noted(rollout: Rollout, version: str, state: State | Literal["undeployed"], by: By) -> Rollout:
    return _next(_with_change(rollout, version, state, by))


def _next(rollout: Rollout, **values: object) -> Rollout:
    return rollout.model_copy(update={**values, "revision": rollout.revision + 1})


def _left(served: tuple[str, ...], version: str) -> tuple[str, ...]:
    """What was served before `version` was, or all of it but the last where it was not."""
    return served[: served.index(version)] if version in served else served[:-1]
