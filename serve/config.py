"""What an endpoint serves, as one frozen value that travels as JSON: to a process, or to Ray Serve's replicas.

Invariant: the value says everything; a replica that restarts with it becomes the same endpoint again.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Annotated, Any

from pydantic import Field, model_validator

from cluster.spec.base import StrictSpec
from cluster.spec.serve import ENDPOINT_NAME, BatchingSpec

VERSION = r"^[1-9][0-9]{0,8}$"


class VersionConfig(StrictSpec):
    """One version: a bundle's folder and the variant that is served."""

    version: Annotated[str, Field(pattern=VERSION)]
    bundle: str
    variant: str | None = None
    """The bundle's default variant when null."""


class EndpointConfig(StrictSpec):
    """All that a replica needs."""

    name: Annotated[str, Field(pattern=ENDPOINT_NAME)]
    versions: Annotated[tuple[VersionConfig, ...], Field(min_length=1)]
    default_version: str
    """The version that answers requests which name none."""
    batching: BatchingSpec = BatchingSpec()
    device: str = "cpu"
    num_threads: Annotated[int, Field(ge=0)] = 1
    """Threads of one engine call on a CPU; replicas, not threads, use the other cores."""

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
        if self.default_version not in names:
            raise ValueError(f"default_version {self.default_version!r} is not one of {names}")
        return self


def endpoint_name(text: str) -> str:
    """A bundle's name as an endpoint's: lower case, other characters become dashes."""
    letters = "".join(letter if letter.isascii() and letter.isalnum() else "-" for letter in text.lower()).strip("-")
    return letters[:63].rstrip("-") if letters[:1].isalpha() else f"m-{letters}"[:63].rstrip("-")
