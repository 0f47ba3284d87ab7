"""`serve`: the endpoint, its replicas and its limits."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, model_validator

from cluster.spec.base import Auto, AutoPositiveInt, PositiveFloat, StrictSpec

ENDPOINT_NAME = r"^[a-z]([a-z0-9-]{0,61}[a-z0-9])?$"

VersionPolicy = Literal["latest", "all"] | tuple[Annotated[str, Field(pattern=r"^[1-9][0-9]{0,8}$")], ...]


class ReplicaSpec(StrictSpec):
    """Bounds and targets of the autoscaler; it works when `max` is above `min`."""

    min: Annotated[int, Field(ge=0)] = 1
    """0 lets an endpoint rest without a replica; equal to `max`, the number is fixed."""
    max: Annotated[int, Field(ge=1)] = 1
    """The autoscaler works between both (serve/deployments/scaling.py)."""
    target_busy: Annotated[float, Field(gt=0, le=1)] = 0.7
    """Share of time in which an engine should work."""
    target_wait_ms: PositiveFloat = 50.0
    """Replicas are added when a request has waited longer."""
    target_latency_ms: PositiveFloat | None = None
    """Also when the 95th percentile inside the server (queue and compute) is above this; null: by waiting alone."""
    up_delay_s: Annotated[float, Field(ge=0)] = 2.0
    """How long more must have been needed before a replica is added."""
    down_delay_s: Annotated[float, Field(ge=0)] = 60.0
    """How long fewer must have been enough before one is taken away."""

    @model_validator(mode="after")
    def _ordered(self) -> ReplicaSpec:
        if self.min > self.max:
            raise ValueError(f"min ({self.min}) must not be above max ({self.max})")
        return self


ROWS_AUTO_MAX = 256
"""Largest batch that `batching.max_rows: auto` tries."""


class BatchingSpec(StrictSpec):
    """Requests are joined into one engine call up to these limits."""

    max_rows: AutoPositiveInt = 64
    """Rows of one engine call. auto: from the engine's latency curve, measured when a version is loaded
    (serve/batching/tuning.py)."""
    max_wait_ms: Auto | Annotated[float, Field(ge=0)] = 1.0
    """How long a request may wait for company. auto: half of what one row alone takes, at most 5 ms."""


class TensorRtSpec(StrictSpec):
    """Engines for `serve.engine: tensorrt`: built on the node that serves them, from the bundle's ONNX graph."""

    opt_rows: Annotated[int, Field(ge=1)] | None = None
    """Rows of the batch that kernels are tuned for; null: batching.max_rows."""
    streams: Annotated[int, Field(ge=1, le=16)] = 1
    """Calls at the same time: each has a context, a profile, buffers and a CUDA stream of its own. More than one keeps
    the engine in the replica's own process."""
    workspace_bytes: Annotated[int, Field(ge=1 << 20)] = 1 << 30
    """Most scratch memory that a kernel may ask for."""
    optimization_level: Annotated[int, Field(ge=0, le=5)] = 3
    """How hard the builder searches: 0 builds in seconds, 5 may take an hour."""
    cuda_graphs: bool = True
    """Replay a recorded call when the same batch shape comes again and again."""
    cache: str | None = None
    """Folder of kept engines on every node; null: ~/.cache/manta/engines."""
    axes: dict[str, tuple[int, int]] = {}
    """Typical and longest length of axes that are free beside the batch: `{tokens.1: [64, 256]}`. The shortest is 1."""

    @model_validator(mode="after")
    def _axes_ordered(self) -> TensorRtSpec:
        for name, (typical, most) in self.axes.items():
            if not 1 <= typical <= most:
                raise ValueError(f"axes.{name} must be typical <= longest, got {typical}, {most}")
        return self


class QueueSpec(StrictSpec):
    """What may wait for an engine, in each replica; past it requests are refused with 503 and Retry-After."""

    max_rows: Annotated[int, Field(ge=1)] = 4096
    """Rows that may wait; past it a request is refused before its body is read."""
    max_mib: Annotated[int, Field(ge=1)] = 256
    """Input tensors of the requests that wait, in MiB."""
    max_wait_ms: PositiveFloat | None = 1000.0
    """A request that would wait longer, by what the engine takes a row now, is refused at once: half of the p99 that
    you can accept keeps accepted requests below it in any overload. null: rows and bytes alone decide."""


class ServeSpec(StrictSpec):
    """An Open Inference Protocol v2 endpoint on Ray Serve."""

    name: Annotated[str, Field(pattern=ENDPOINT_NAME)] | None = None
    """Endpoint name; the run's name when null."""
    host: str = "127.0.0.1"
    """Address to listen on; the first endpoint of a Ray sets it for all."""
    port: Annotated[int, Field(ge=0, le=65535)] = 8000
    """0 takes a free port; the first endpoint of a Ray sets it for all."""
    grpc_port: Annotated[int, Field(ge=0, le=65535)] | None = None
    """Port of the gRPC door; null keeps it shut, 0 takes a free port; the first endpoint of a Ray sets it for all."""
    device: Literal["cpu", "cuda"] = "cpu"
    """cuda: each replica gets a share of one GPU, by the model's measured footprint."""
    replicas: ReplicaSpec = ReplicaSpec()
    batching: BatchingSpec = BatchingSpec()
    queue: QueueSpec = QueueSpec()
    versions: VersionPolicy = "latest"
    """Which versions answer side by side: latest, all that are remembered (16), or those of a list, beside the default.
    """
    access_log: Annotated[float, Field(ge=0, le=1)] = 0.0
    """Share of the requests that are logged, one JSON line each, without payloads: 0 none, 1 all."""
    cors_origins: tuple[Annotated[str, Field(pattern=r"^(\*|https?://[^/\s]+)$")], ...] = ()
    """Web pages of these origins may ask from a browser, e.g. `[https://shop.example]`; `["*"]`: any; none: only pages
    of the endpoint's own origin."""
    allow_non_finite: bool = False
    """Let NaN and infinity in inputs reach the model. false answers 400: a quantized graph makes a confident answer of
    them."""
    unseen: Literal["answer", "refuse"] = "answer"
    """Raw rows with a category that training did not have, or a number or date far outside its range: answer and name
    them, or refuse with 400. Far outside: beyond the smallest or largest training value by more than half the distance
    between the two (of a normal column with 100 training rows, about one value in 100,000). Bundles of before these
    facts, free text and columns with more than 65,536 categories have no such check."""
    engine: Literal["onnxruntime", "tensorrt"] = "onnxruntime"
    """What runs the graph; `tensorrt` needs `device: cuda`."""
    tensorrt: TensorRtSpec = TensorRtSpec()
    token_file: str | None = None
    """File with one bearer token a line (16 characters or more), readable on every node; null: anyone may infer."""
    admin_token_file: str | None = None
    """Tokens that may load and unload; null refuses that to everyone."""
    ready_timeout_s: PositiveFloat = 60.0
    """How long a deploy waits for the endpoint to be ready."""

    @model_validator(mode="after")
    def _engine_has_a_device(self) -> ServeSpec:
        if self.engine == "tensorrt" and self.device != "cuda":
            raise ValueError("engine tensorrt runs on NVIDIA GPUs only: set device to cuda, or engine to onnxruntime")
        return self
