"""What an endpoint serves, as one frozen value that travels as JSON: to a process, or to Ray Serve's replicas.

The value is the `serve` section of a YAML, as it stands, beside what a section does not have: the endpoint's name and
its bundles. `manta deploy`, the deploy stage and `python -m serve` all make one.

Invariant: the value is complete; a replica that restarts with it becomes the same endpoint again.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any

from pydantic import Field, ValidationError, model_validator

from cluster.atomic import sha256_file
from cluster.bundle.manifest import MANIFEST
from cluster.errors import RequestError
from cluster.spec.base import PositiveFloat, StrictSpec
from cluster.spec.load import override_section
from cluster.spec.serve import ENDPOINT_NAME, ServeSpec, TensorRtSpec
from serve.access import absolute

VERSION = r"^[1-9][0-9]{0,8}$"
HISTORY_MAX = 16  # versions that an endpoint keeps for rollback


class VersionConfig(StrictSpec):
    """One version: a bundle's folder and the variant that is served."""

    version: Annotated[str, Field(pattern=VERSION)]
    bundle: str
    """The folder that was deployed."""
    kept: str | None = None
    """This version's own copy (serve/deployments/records.py); null: the folder alone."""
    variant: str | None = None
    """The bundle's default variant when null."""
    manifest_sha256: str | None = None
    """The manifest that this version means: a folder that was written anew is another version, and is not loaded."""

    @property
    def folder(self) -> Path:
        """Where the bundle is read: its own copy, or the deployed folder on a node that does not have the copy."""
        own = Path(self.kept) if self.kept is not None else None
        return own if own is not None and (own / MANIFEST).is_file() else Path(self.bundle)


class CanaryConfig(StrictSpec):
    """A version that gets a share of the requests that name none, and those that ask for it by a header."""

    version: Annotated[str, Field(pattern=VERSION)]
    percent: Annotated[float, Field(gt=0, le=100)]


class EndpointConfig(StrictSpec):
    """All that a replica needs. `versions` is the endpoint's history, oldest first; `spec.versions` names those of it
    that are loaded beside the default one."""

    name: Annotated[str, Field(pattern=ENDPOINT_NAME)]
    """The endpoint's name; `spec.name` may be null."""
    versions: Annotated[tuple[VersionConfig, ...], Field(min_length=1)]
    default_version: str
    """The version that answers requests which name none."""
    fallback: str | None = None
    """Served by a replica that starts and cannot load `default_version`: what served before, until a deploy has seen
    every replica serve the new one."""
    canary: CanaryConfig | None = None
    """Loaded beside the default version, and tried on real requests before it becomes it."""
    spec: ServeSpec = ServeSpec()
    engine_device: str | None = None
    """One GPU of several that the process sees: `cuda:1`, `tensorrt:0`; null: `spec.device`."""
    engine_process: bool | None = None
    """Run the engine in a process of its own; null: on a GPU yes, on a CPU no."""
    call_timeout_s: PositiveFloat = 60.0
    """Longest engine call, where the engine has a process of its own."""
    num_threads: Annotated[int, Field(ge=0)] = 1
    """Threads of one engine call on a CPU; replicas, not threads, use the other cores."""
    loads: Annotated[int, Field(ge=0)] = 0
    """Grows with a deploy that follows an unload: Ray Serve hands a value to the replicas only where it differs."""

    @property
    def device(self) -> str:
        """What engines run on: `cpu`, `cuda`, `cuda:N`, `tensorrt:N`."""
        return self.engine_device or self.spec.device

    @property
    def tensorrt(self) -> TensorRtSpec | None:
        """How TensorRT engines are built from ONNX graphs on the replica's node; None: ONNX Runtime runs the graphs."""
        return self.spec.tensorrt if self.spec.engine == "tensorrt" else None

    @property
    def engine_settings(self) -> tuple[Any, ...]:
        """What a loaded engine depends on: a version is loaded anew where one of these changes."""
        spec, process = self.spec, (self.num_threads, self.engine_process, self.call_timeout_s)
        return (spec.batching, spec.queue, self.device, self.tensorrt, *process)

    @property
    def loaded(self) -> tuple[VersionConfig, ...]:
        """The versions that a replica loads, the default one first."""
        policy = self.spec.versions
        wanted = [v.version for v in self.versions] if policy == "all" else list(policy)
        first = (self.default_version, self.canary.version if self.canary is not None else None)
        chosen = sorted((v for v in self.versions if v.version in first), key=lambda v: v.version != first[0])
        return (*chosen, *(v for v in self.versions if v.version in wanted and v not in chosen))

    @classmethod
    def of_bundle(
        cls, name: str, bundle: Path, variant: str | None = None, before: EndpointConfig | None = None
    ) -> EndpointConfig:
        """The endpoint that serves a bundle: its first, the one after `before`, or a version that `before` has with
        the same bytes."""
        digest = sha256_file(bundle / MANIFEST)
        if before is None:
            first = VersionConfig(version="1", bundle=str(bundle), variant=variant, manifest_sha256=digest)
            return cls(name=name, versions=(first,), default_version="1")
        same = [each for each in before.versions if (each.manifest_sha256, each.variant) == (digest, variant)]
        now = [each for each in same if each.version == before.default_version]
        if not same:
            return before.with_version(str(bundle), variant, digest)
        return before.with_default((now or same)[-1].version)

    @classmethod
    def of_run(cls, name: str, bundle: Path, spec: ServeSpec, before: EndpointConfig | None = None) -> EndpointConfig:
        """The endpoint of a run's bundle and YAML. Raises RequestError for a `spec` that its history does not allow."""
        return cls.of_bundle(name, bundle, before=before).with_spec(spec)

    def with_version(
        self, bundle: str, variant: str | None = None, manifest_sha256: str | None = None
    ) -> EndpointConfig:
        """The endpoint with a new version, which becomes the default one. Old history beyond the limit is dropped.

        A list in `spec.versions` forgets versions that history has dropped.
        """
        number = max(int(version.version) for version in self.versions) + 1
        new = VersionConfig(version=str(number), bundle=bundle, variant=variant, manifest_sha256=manifest_sha256)
        old = [each for each in self.versions if each.version != self.default_version][-(HISTORY_MAX - 2) :]
        versions = (*(each for each in self.versions if each in old or each.version == self.default_version), new)
        names = {version.version for version in versions}
        policy = self.spec.versions
        kept = policy if isinstance(policy, str) else tuple(v for v in policy if v in names)
        spec = self.spec.model_copy(update={"versions": kept})
        named = {"default_version": new.version, "fallback": None, "canary": None}
        return self.model_copy(update={"versions": versions, "spec": spec, **named})

    def with_default(self, version: str) -> EndpointConfig:
        """The endpoint with another of its versions as the default one, and without a canary."""
        return self.model_copy(update={"default_version": version, "fallback": None, "canary": None})

    def with_canary(self, version: str, percent: float) -> EndpointConfig:
        """The endpoint with one of its versions as the canary."""
        return self.model_copy(update={"canary": CanaryConfig(version=version, percent=percent), "fallback": None})

    def numbered(self, number: str) -> EndpointConfig:
        """The endpoint with another number for its subject."""
        old, policy = self.subject.version, self.spec.versions
        versions = tuple(
            each.model_copy(update={"version": number}) if each.version == old else each for each in self.versions
        )
        chosen = policy if isinstance(policy, str) else tuple(number if v == old else v for v in policy)
        spec = self.spec.model_copy(update={"versions": chosen})
        if self.canary is None:
            return self.model_copy(update={"versions": versions, "default_version": number, "spec": spec})
        canary = self.canary.model_copy(update={"version": number})
        return self.model_copy(update={"versions": versions, "canary": canary, "spec": spec})

    @property
    def default(self) -> VersionConfig:
        """The version of `default_version`."""
        return next(each for each in self.versions if each.version == self.default_version)

    @property
    def subject(self) -> VersionConfig:
        """The version that a roll-out to this configuration is about: the canary, else the default one."""
        version = self.canary.version if self.canary is not None else self.default_version
        return next(each for each in self.versions if each.version == version)

    def with_values(self, values: Mapping[str, Any], overrides: Sequence[str] = ()) -> EndpointConfig:
        """The endpoint with values of its `serve` section by dotted path (null: as it is), and with `--set` overrides.

        Raises RequestError, with every problem and the nearest keys.
        """
        return self.with_spec(override_section(self.spec, values, overrides, attempted=f"Cannot deploy '{self.name}'"))

    def with_spec(self, spec: ServeSpec) -> EndpointConfig:
        """The endpoint with another `spec`, every rule checked anew. Raises RequestError.

        Token files become absolute paths: a replica has another working folder.
        """
        files = {"token_file": absolute(spec.token_file), "admin_token_file": absolute(spec.admin_token_file)}
        try:
            return EndpointConfig.from_json(self.model_copy(update={"spec": spec.model_copy(update=files)}).to_json())
        except ValidationError as error:
            found = "; ".join(each["msg"] for each in error.errors(include_url=False))
            raise RequestError(f"Cannot deploy '{self.name}'", found=found) from None

    def to_json(self) -> dict[str, Any]:
        """JSON-able form, for Ray Serve's user_config."""
        return self.model_dump(mode="json")

    @classmethod
    def from_json(cls, raw: Mapping[str, Any]) -> EndpointConfig:
        """The inverse of `to_json`; takes the form of before `spec` too. Raises pydantic.ValidationError."""
        return cls.model_validate_json(json.dumps(raw if "spec" in raw else _nested(raw)))

    @model_validator(mode="after")
    def _default_is_there(self) -> EndpointConfig:
        names = [version.version for version in self.versions]
        if len(set(names)) != len(names):
            raise ValueError(f"versions must differ, got {names}")
        chosen = () if isinstance(self.spec.versions, str) else self.spec.versions
        others = (self.fallback, self.canary.version if self.canary is not None else None)
        for version in (self.default_version, *filter(None, others), *chosen):
            if version not in names:
                raise ValueError(f"version {version!r} is not one of {names}")
        return self


CONFIG_FORM = (
    4  # of `to_json`: part of the replicas' code version, since replicas of older code cannot read a newer one
)
FLAT_VERSIONS = "policy"  # what `spec.versions` was called while a configuration had its settings beside its versions
FLAT_SETTINGS = ("batching", "queue", "access_log", "allow_non_finite", "unseen", "replicas", "token_file",
                 "admin_token_file")  # fmt: skip


def _nested(raw: Mapping[str, Any]) -> dict[str, Any]:
    """A configuration that an older Manta gave to Ray Serve, in today's form."""
    spec = {name: raw[name] for name in FLAT_SETTINGS if name in raw}
    spec["versions"] = raw.get(FLAT_VERSIONS, "latest")
    device = raw.get("device") or "cpu"
    named = {} if device in ("cpu", "cuda") else {"engine_device": device}  # `cuda:1`
    spec |= {} if named else {"device": device}
    if raw.get("tensorrt") is not None:
        spec |= {"engine": "tensorrt", "tensorrt": raw["tensorrt"], "device": "cuda"}
    flat = (*FLAT_SETTINGS, FLAT_VERSIONS, "tensorrt", "device")
    return {**{name: value for name, value in raw.items() if name not in flat}, **named, "spec": spec}


def endpoint_name(text: str) -> str:
    """A bundle's name as an endpoint's: lower case, other characters become dashes."""
    letters = "".join(letter if letter.isascii() and letter.isalnum() else "-" for letter in text.lower()).strip("-")
    return letters[:63].rstrip("-") if letters[:1].isalpha() else f"m-{letters}"[:63].rstrip("-")
