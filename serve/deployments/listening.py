"""Ray Serve's start, and where a running one listens against what a deploy wants: it listens once for all endpoints."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping
from typing import Any

import ray
from ray import serve as ray_serve
from ray.serve.schema import LoggingConfig

from cluster.runtime.ports import claim_port
from cluster.runtime.ray_private import serve_address, serve_details
from cluster.spec.serve import ServeSpec

LOG = logging.getLogger(__name__)
SERVICER_FUNCTIONS = (
    "serve.proto.inference_pb2_grpc.add_GRPCInferenceServiceServicer_to_server",
    "serve.proto.health_pb2_grpc.add_HealthServicer_to_server",
)

REMEDY = (
    "Ray Serve listens once for all endpoints of a Ray: to change it, undeploy them, end Ray Serve with "
    "'serve shutdown' on the head, and deploy anew."
)


def start_serve(spec: ServeSpec) -> tuple[str, int]:
    """Start Ray Serve on this Ray, or find it running; returns host and port. Raises PortInUseError."""
    running = serve_address()
    if running is not None:
        return running
    port = claim_port(spec.host, spec.port)
    _warn_of_loopback(spec.host)
    ray_serve.start(
        proxy_location="EveryNode",
        http_options={"host": spec.host, "port": port},
        grpc_options=_grpc_options(spec),
        logging_config=LoggingConfig(enable_access_log=False),
    )
    return spec.host, port


def _warn_of_loopback(host: str) -> None:
    """Replicas listen on the endpoint's host: other nodes' proxies cannot reach loopback."""
    addresses = {node["NodeManagerAddress"] for node in ray.nodes() if node["Alive"]}
    if len(addresses) > 1 and host in ("127.0.0.1", "localhost", "::1"):
        LOG.warning(
            "the endpoint listens on %s and this Ray has %d hosts: set serve.host to 0.0.0.0, or a proxy reaches the "
            "replicas of its own host alone",
            host,
            len(addresses),
        )


def _grpc_options(spec: ServeSpec) -> dict[str, Any] | None:
    if spec.grpc_port is None:
        return None
    port = claim_port(spec.host, spec.grpc_port)
    return {"port": port, "grpc_servicer_functions": list(SERVICER_FUNCTIONS)}


def listens_now() -> dict[str, Any]:
    """`host`, `port` and `grpc_port` (None: shut) of the Ray Serve that runs; empty where none does."""
    details = serve_details()
    if not details:
        return {}
    http, grpc = details.get("http_options") or {}, details.get("grpc_options") or {}
    is_open = bool(grpc.get("grpc_servicer_functions"))
    return {"host": http.get("host"), "port": http.get("port"), "grpc_port": grpc.get("port") if is_open else None}


def not_applied(wanted: Mapping[str, Any], running: Mapping[str, Any]) -> str:
    """What of `wanted` (None: nothing was said; port 0: any) a running Ray Serve does not follow; empty for nothing."""
    found = list(_differences(wanted, running))
    return f"Not applied: {'; '.join(found)}. {REMEDY}" if found else ""


def _differences(wanted: Mapping[str, Any], running: Mapping[str, Any]) -> Iterator[str]:
    for key, now in running.items():
        value = wanted.get(key)
        is_any = key != "host" and value == 0 and now is not None
        if value is not None and value != now and not is_any:
            shown = "shut" if now is None else now
            yield f"{key} {value}, because this Ray serves already with {key} {shown}"
