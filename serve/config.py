"""What an endpoint serves, as one frozen value that travels as JSON: to a process, or to Ray Serve's replicas.

Invariant: the value says everything; a replica that restarts with it becomes the same endpoint again.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field, ValidationError, model_validator

from cluster.atomic import sha256_file
from cluster.bundle.manifest import MANIFEST
from cluster.errors import RequestError
from cluster.spec.base import PositiveFloat, StrictSpec
from cluster.spec.serve import (
    ENDPOINT_NAME,
    BatchingSpec,
    QueueSpec,
    ReplicaSpec,
    ServeSpec,
    TensorRtSpec,
    VersionPolicy,
)
from serve.access import absolute

VERSION = r"^[1-9][0-9]{0,8}$"
HISTORY_MAX = 16  # versions that an endpoint remembers for rollback


class VersionConfig(StrictSpec):
    """One version: a bundle's folder and the variant that is served."""

    version: Annotated[str, Field(pattern=VERSION)]
    bundle: str
    variant: str | None = None
    """The bundle's default variant when null."""
    manifest_sha256: str | None = None
    """The manifest that this version means: a folder that was written anew is another version, and is not loaded."""


class EndpointConfig(StrictSpec):
    """All that a replica needs. `versions` is the endpoint's history, oldest first; the policy says what is loaded."""

    name: Annotated[str, Field(pattern=ENDPOINT_NAME)]
    versions: Annotated[tuple[VersionConfig, ...], Field(min_length=1)]
    default_version: str
    """The version that answers requests which name none."""
    policy: VersionPolicy = "latest"
    """Which versions are loaded beside the default one: none, all, or these."""
    batching: BatchingSpec = BatchingSpec()
    queue: QueueSpec = QueueSpec()
    access_log: Annotated[float, Field(ge=0, le=1)] = 0.0
    """Share of the requests that are logged."""
    allow_non_finite: bool = False
    """Whether NaN and infinity in inputs reach the model."""
    unseen: Literal["answer", "refuse"] = "answer"
    """What becomes of raw rows with values that training did not have."""
    replicas: ReplicaSpec = ReplicaSpec()
    token_file: str | None = None
    admin_token_file: str | None = None
    device: str = "cpu"
    tensorrt: TensorRtSpec | None = None
    """Serve ONNX graphs by TensorRT engines that are built on the replica's node; null: by ONNX Runtime."""
    engine_process: bool | None = None
    """Run the engine in a process of its own; null: on a GPU yes, on a CPU no."""
    call_timeout_s: PositiveFloat = 60.0
    """Longest engine call, where the engine has a process of its own."""
    num_threads: Annotated[int, Field(ge=0)] = 1
    """Threads of one engine call on a CPU; replicas, not threads, use the other cores."""

    loads: Annotated[int, Field(ge=0)] = 0
    """Grows with a deploy that follows an unload: replicas are told of a value that differs, and of no other."""

    @property
    def loaded(self) -> tuple[VersionConfig, ...]:
        """The versions that a replica loads, the default one first."""
        wanted = [v.version for v in self.versions] if self.policy == "all" else list(self.policy)
        chosen = [v for v in self.versions if v.version == self.default_version]
        return (*chosen, *(v for v in self.versions if v.version in wanted and v not in chosen))

    def with_version(
        self, bundle: str, variant: str | None = None, manifest_sha256: str | None = None
    ) -> EndpointConfig:
        """The endpoint with a new version, which becomes the default one. Old history beyond the limit is dropped.

        A policy's list forgets versions that history has dropped.
        """
        number = max(int(version.version) for version in self.versions) + 1
        new = VersionConfig(version=str(number), bundle=bundle, variant=variant, manifest_sha256=manifest_sha256)
        versions = (*self.versions[-(HISTORY_MAX - 1) :], new)
        names = {version.version for version in versions}
        policy = self.policy if isinstance(self.policy, str) else tuple(v for v in self.policy if v in names)
        return self.model_copy(update={"versions": versions, "default_version": new.version, "policy": policy})

    def rolled_back(self) -> EndpointConfig | None:
        """The endpoint with the version before the default one as default, or None when there is none."""
        names = [version.version for version in self.versions]
        place = names.index(self.default_version)
        return self.model_copy(update={"default_version": names[place - 1]}) if place else None

    @classmethod
    def of_spec(cls, spec: ServeSpec, name: str, bundle: Path, before: EndpointConfig | None = None) -> EndpointConfig:
        """What a YAML asks for. An endpoint that is there gets a new version, unless it serves this very bundle."""
        digest = sha256_file(bundle / MANIFEST)
        first = VersionConfig(version="1", bundle=str(bundle), manifest_sha256=digest)
        have = before.versions if before else ()
        same = next((v for v in have if (v.manifest_sha256, v.bundle) == (digest, str(bundle))), None)
        if before is None:
            history = cls(name=name, versions=(first,), default_version="1")
        elif same is not None:
            history = before.model_copy(update={"default_version": same.version})
        else:
            history = before.with_version(str(bundle), manifest_sha256=digest)
        asked = {
            "policy": spec.versions,
            "batching": spec.batching,
            "queue": spec.queue,
            "access_log": spec.access_log,
            "allow_non_finite": spec.allow_non_finite,
            "unseen": spec.unseen,
            "replicas": spec.replicas,
            "device": spec.device,
            "tensorrt": spec.tensorrt if spec.engine == "tensorrt" else None,
            "token_file": absolute(spec.token_file),
            "admin_token_file": absolute(spec.admin_token_file),
        }
        return history.with_values(asked)

    def with_values(self, values: Mapping[str, Any]) -> EndpointConfig:
        """The endpoint with other values, every rule checked anew. Raises RequestError."""
        try:
            return EndpointConfig.from_json(self.model_copy(update=dict(values)).to_json())
        except ValidationError as error:
            found = "; ".join(each["msg"] for each in error.errors(include_url=False))
            raise RequestError(f"Cannot deploy '{self.name}'", found=found) from None

    def to_json(self) -> dict[str, Any]:
        """JSON-able form, for Ray Serve's user_config."""
        return self.model_dump(mode="json")

    @classmethod
    def from_json(cls, raw: Mapping[str, Any]) -> EndpointConfig:
        """The inverse of `to_json`. Raises pydantic.ValidationError."""
        return cls.model_validate_json(json.dumps(raw))

    @model_validator(mode="after")
    def _default_is_there(self) -> EndpointConfig:
        names = [version.version for version in self.versions]
        if len(set(names)) != len(names):
            raise ValueError(f"versions must differ, got {names}")
        chosen = () if isinstance(self.policy, str) else self.policy
        for version in (self.default_version, *chosen):
            if version not in names:
                raise ValueError(f"version {version!r} is not one of {names}")
        return self


def endpoint_name(text: str) -> str:
    """A bundle's name as an endpoint's: lower case, other characters become dashes."""
    letters = "".join(letter if letter.isascii() and letter.isalnum() else "-" for letter in text.lower()).strip("-")
    return letters[:63].rstrip("-") if letters[:1].isalpha() else f"m-{letters}"[:63].rstrip("-")
