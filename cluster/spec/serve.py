"""`serve`: the endpoint, its replicas and its limits."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field, model_validator

from cluster.spec.base import Auto, AutoPositiveInt, PositiveFloat, StrictSpec

ENDPOINT_NAME = r"^[a-z]([a-z0-9-]{0,61}[a-z0-9])?$"


class ReplicaSpec(StrictSpec):
    """Bounds and targets of the autoscaler; it works when `max` is above `min`."""

    min: Annotated[int, Field(ge=0)] = 1
    max: Annotated[int, Field(ge=1)] = 1
    target_busy: Annotated[float, Field(gt=0, le=1)] = 0.7
    """Share of time in which an engine should work."""
    target_wait_ms: PositiveFloat = 50.0
    """A request that has waited longer asks for more replicas."""
    up_delay_s: Annotated[float, Field(ge=0)] = 2.0
    """How long more must have been needed before a replica is added."""
    down_delay_s: Annotated[float, Field(ge=0)] = 60.0
    """How long fewer must have been enough before one is taken away."""

    @model_validator(mode="after")
    def _ordered(self) -> ReplicaSpec:
        if self.min > self.max:
            raise ValueError(f"min ({self.min}) must not be above max ({self.max})")
        return self


class BatchingSpec(StrictSpec):
    """Requests are joined into one engine call up to these limits."""

    max_rows: AutoPositiveInt = 64
    """auto: from the engine's latency curve, measured when a version is loaded."""
    max_wait_ms: Auto | Annotated[float, Field(ge=0)] = 1.0
    """How long a request may wait for company. auto: half of what one row alone takes, at most 5 ms."""


class ServeSpec(StrictSpec):
    """An Open Inference Protocol v2 endpoint on Ray Serve."""

    name: Annotated[str, Field(pattern=ENDPOINT_NAME)] | None = None
    """Endpoint name; the run's name when null."""
    host: str = "127.0.0.1"
    port: Annotated[int, Field(ge=0, le=65535)] = 8000
    """0 takes a free port."""
    grpc_port: Annotated[int, Field(ge=0, le=65535)] | None = None
    """Port of the gRPC door; null keeps it shut, 0 takes a free port."""
    replicas: ReplicaSpec = ReplicaSpec()
    batching: BatchingSpec = BatchingSpec()
    token_file: str | None = None
    """File with one bearer token a line, on every node; null lets anyone ask."""
    admin_token_file: str | None = None
    """Tokens that may load and unload; null refuses that to everyone."""
    ready_timeout_s: PositiveFloat = 60.0
