"""`serve`: the endpoint, its replicas and its limits."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field, model_validator

from cluster.spec.base import PositiveFloat, StrictSpec

ENDPOINT_NAME = r"^[a-z]([a-z0-9-]{0,61}[a-z0-9])?$"


class ReplicaSpec(StrictSpec):
    """Bounds of the autoscaler."""

    min: Annotated[int, Field(ge=0)] = 1
    max: Annotated[int, Field(ge=1)] = 1

    @model_validator(mode="after")
    def _ordered(self) -> ReplicaSpec:
        if self.min > self.max:
            raise ValueError(f"min ({self.min}) must not be above max ({self.max})")
        return self


class BatchingSpec(StrictSpec):
    """Requests are joined into one engine call up to these limits."""

    max_rows: Annotated[int, Field(gt=0)] = 64
    max_wait_ms: Annotated[float, Field(ge=0)] = 1.0


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
    ready_timeout_s: PositiveFloat = 60.0
