"""Put an endpoint on a running Ray, see what is there, take it away.

An endpoint is a Ray Serve application of one deployment, with the endpoint's name, at the path `/<name>`. Its
`EndpointConfig` lies in the deployment's `user_config`, so that the cluster itself is the only memory of its endpoints.
Host and ports of the configuration are those of the first endpoint of a Ray: Ray Serve listens once for all.

Invariant: `deploy` returns only when the endpoint answers through its public port with the asked version; when it
cannot, what it had put up is taken down and what was served before still is.
"""

from __future__ import annotations

import importlib.metadata
import logging
import re
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import ray
from pydantic import ValidationError
from ray import serve as ray_serve
from ray.exceptions import RayError
from ray.serve.config import AutoscalingConfig, AutoscalingPolicy
from ray.serve.exceptions import RayServeException
from ray.serve.schema import LoggingConfig

from cluster.errors import EndpointError, RequestError
from cluster.runtime.ports import claim_port
from cluster.runtime.ray_private import serve_address, serve_details, start_deleting, with_code_version
from cluster.spec.serve import ReplicaSpec, ServeSpec
from serve.access import first_token
from serve.client import EndpointClient
from serve.config import CONFIG_FORM, EndpointConfig
from serve.deployments.placement import actor_options
from serve.deployments.replica import DEPLOYMENT, endpoint_deployment
from serve.deployments.scaling import LOOK_BACK_S, METRICS_INTERVAL_S
from serve.deployments.unloaded import remember_unloaded
from serve.models.repository import LOADING, NOT_KEPT, UNLOADED

LOG = logging.getLogger(__name__)
# Ray Serve's own limit is only a backstop: the batcher's bounded queue refuses first, with a protocol answer
ONGOING_REQUESTS_MAX = 8192
POLL_S = 0.05
PROBE_TIMEOUT_S = 1.0
STATUS_EVERY_S = 0.5
REASONS_PASSING = (LOADING, UNLOADED, NOT_KEPT)
REVERT_WAIT_S = 10.0
SERVICER_FUNCTIONS = (
    "serve.proto.inference_pb2_grpc.add_GRPCInferenceServiceServicer_to_server",
    "serve.proto.health_pb2_grpc.add_HealthServicer_to_server",
)
CONSTRUCTOR_TRIES = 2  # a model that does not load will not load the third time


@dataclass(frozen=True)
class Endpoint:
    """A live endpoint."""

    name: str
    url: str
    version: str
    replicas: int


def deploy(config: EndpointConfig, *, token: str = "", progress: Callable[[str], None] = LOG.info) -> Endpoint:
    """Start or change an endpoint and wait until it answers, at most `spec.ready_timeout_s`.

    `token`: sent with the questions; the first of the endpoint's token file when empty. Raises PortInUseError,
    EndpointError, RequestError, BundleError, MemoryShortError.
    """
    token = token or first_token(config.spec.token_file)  # a file that cannot be read ends here, with nothing changed
    deadline_s = time.monotonic() + config.spec.ready_timeout_s
    host, port = start_serve(config.spec)
    url = f"http://{_reachable(host)}:{port}/{config.name}"
    progress("starting replicas")
    before, options_before = configuration(config.name), _actor_options_now(config.name)
    was_unloaded = remember_unloaded(config.name, False)
    if was_unloaded:
        config = config.model_copy(update={"loads": config.loads + 1})
    _run(config, actor_options(config, before, options_before))
    try:
        _wait(config, url, deadline_s, token)
    except EndpointError:
        if before is None:
            start_deleting(config.name)
        else:
            remember_unloaded(config.name, was_unloaded)
            _revert(before, options_before)
        raise
    return Endpoint(config.name, url, config.default_version, max(1, config.spec.replicas.min))


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


def configuration(name: str) -> EndpointConfig | None:
    """What an endpoint serves by its last deploy, or None for an unknown name. Raises EndpointError."""
    raw = _deployment_config(name).get("user_config")
    try:
        return EndpointConfig.from_json(raw) if raw else None
    except ValidationError as error:
        raise EndpointError(
            f"Cannot read the configuration of endpoint '{name}'",
            found="; ".join(each["msg"] for each in error.errors(include_url=False)),
            rule="this Manta reads what it has deployed, and what the version before it had",
            remedy=f"Take it away with 'manta undeploy {name}' and deploy it again.",
        ) from None


def _actor_options_now(name: str) -> dict[str, Any]:
    """What each replica of an endpoint has reserved."""
    kept = ("num_cpus", "num_gpus", "resources")
    have = _deployment_config(name).get("ray_actor_options") or {}
    return {key: have[key] for key in kept if have.get(key)}


def _deployment_config(name: str) -> dict[str, Any]:
    application = serve_details().get("applications", {}).get(name, {})
    found: dict[str, Any] = application.get("deployments", {}).get(DEPLOYMENT, {}).get("deployment_config", {})
    return found


def rollback(name: str, *, token: str = "") -> Endpoint:
    """Return an endpoint to the version before the one it serves. Raises RequestError, EndpointError."""
    config = configuration(name)
    previous = config.rolled_back() if config else None
    if config is None or previous is None:
        raise RequestError(
            f"Cannot roll '{name}' back",
            found="there is no such endpoint" if config is None else f"version {config.default_version} is its first",
            remedy="'manta endpoints' lists endpoints and their versions.",
        )
    return deploy(previous, token=token)


def undeploy(name: str) -> None:
    """Take an endpoint away. Raises RequestError for an unknown name."""
    have = sorted(ray_serve.status().applications) if serve_address() is not None else []
    if name not in have:
        raise RequestError(
            f"Cannot undeploy '{name}'",
            found="there is no such endpoint",
            remedy=f"Endpoints here: {', '.join(have) or 'none'}.",
        )
    ray_serve.delete(name)
    remember_unloaded(name, False)


def still_serves() -> bool:
    """Whether an endpoint is left on this Ray; True while Ray Serve cannot say, because its controller restarts."""
    try:
        return serve_address() is not None and bool(ray_serve.status().applications)
    except (RayError, RayServeException):
        return True


def _run(config: EndpointConfig, replica: dict[str, Any]) -> None:
    """Hand a configuration to Ray Serve; returns before the replicas have it."""
    code = f"{importlib.metadata.version('manta-ml')}+{CONFIG_FORM}"
    deployment = with_code_version(endpoint_deployment(), code, _deployment_options(config, replica))
    application = deployment.bind(config.name)
    ray_serve.run_many(
        [ray_serve.RunTarget(application, name=config.name, route_prefix=f"/{config.name}")],
        wait_for_applications_running=False,
    )


def _revert(before: EndpointConfig, replica: dict[str, Any]) -> None:
    """Replicas kept the old version; a replica that restarts must find it too."""
    _run(before, replica)
    deadline_s = time.monotonic() + REVERT_WAIT_S
    while configuration(before.name) != before and time.monotonic() < deadline_s:
        time.sleep(POLL_S)


def _deployment_options(config: EndpointConfig, replica: dict[str, Any]) -> dict[str, Any]:
    return {
        "ray_actor_options": replica,
        "user_config": config.to_json(),
        **_replica_options(config.spec.replicas, replica),
        "max_ongoing_requests": ONGOING_REQUESTS_MAX,
        "max_constructor_retry_count": CONSTRUCTOR_TRIES,
        "logging_config": LoggingConfig(enable_access_log=False),
        "max_surge_percent": 100,  # a replica that is replaced stops only after its successor answers
    }


def _replica_options(replicas: ReplicaSpec, replica: dict[str, Any]) -> dict[str, Any]:
    """A fixed number, or Ray Serve's autoscaler with our policy."""
    if replicas.min == replicas.max:
        return {"num_replicas": replicas.min}
    targets = {"busy": replicas.target_busy, "wait_s": replicas.target_wait_ms / 1e3}
    if replicas.target_latency_ms is not None:
        targets["latency_s"] = replicas.target_latency_ms / 1e3
    policy = AutoscalingPolicy(
        policy_function="serve.deployments.scaling:ScalingPolicy",
        policy_kwargs={"targets": targets, "replica": replica},
    )
    config = AutoscalingConfig(
        min_replicas=replicas.min,
        initial_replicas=max(1, replicas.min),
        max_replicas=replicas.max,
        # deprecated, but the look-back is compared with it; replicas go by cluster/runtime/environment.py
        metrics_interval_s=METRICS_INTERVAL_S,
        look_back_period_s=LOOK_BACK_S,
        upscale_delay_s=replicas.up_delay_s,
        downscale_delay_s=replicas.down_delay_s,
        policy=policy,
    )
    return {"autoscaling_config": config}


def _wait(config: EndpointConfig, url: str, deadline_s: float, token: str) -> None:
    """Until every replica has the asked version and it answers through the public port. Raises EndpointError."""
    next_status_s = 0.0
    settled = False
    # short: while there is no replica, Ray Serve's fallback proxy holds a request instead of answering
    with EndpointClient(url, config.name, token=token, timeout_s=PROBE_TIMEOUT_S) as client:
        while True:
            now = time.monotonic()
            if now >= next_status_s:
                settled = _settled(config.name)
                next_status_s = now + STATUS_EVERY_S
            if client.serves(config.default_version):
                if settled or config.spec.replicas.max == 1:
                    return
            else:
                _raise_if_refused(client, config)
            if now >= deadline_s:
                raise EndpointError(
                    f"Cannot deploy endpoint '{config.name}'",
                    found=f"it did not answer at {url} within {config.spec.ready_timeout_s:g} s; {_state(config.name)}",
                    remedy="Raise serve.ready_timeout_s, or look at the replica's log in the run's ray-logs.",
                )
            time.sleep(POLL_S)


def _settled(name: str) -> bool:
    """Whether Ray Serve has brought every replica to its target. Raises EndpointError when it has given up."""
    application = ray_serve.status().applications.get(name)
    if application is None:
        return False
    if application.status.value == "DEPLOY_FAILED":
        messages = [application.message, *(each.message for each in application.deployments.values())]
        raise _not_deployed(name, _cause("\n".join(messages)))
    return application.status.value == "RUNNING"


def _raise_if_refused(client: EndpointClient, config: EndpointConfig) -> None:
    """A replica that serves an older version tells in its index why it refused the new one."""
    for entry in client.index():
        refused = entry["version"] == config.default_version and entry["state"] == "UNAVAILABLE"
        if refused and entry["reason"] not in REASONS_PASSING:
            raise _not_deployed(config.name, f"version {entry['version']}: {entry['reason']}")


def _not_deployed(name: str, found: str) -> EndpointError:
    return EndpointError(
        f"Cannot deploy endpoint '{name}'",
        found=found,
        rule="a version is served only after it is loaded, warmed up and gives the bundle's sample outputs",
        remedy="The version before, if there was one, still answers.",
    )


def _cause(text: str) -> str:
    """The line of a replica's traceback that names the error."""
    lines = [line.strip() for line in text.splitlines()]
    named = [line for line in lines if re.match(r"(cluster\.errors\.)?[A-Za-z_.]*(Error|Exception): ", line)]
    return (named[-1] if named else next((line for line in reversed(lines) if line), "no message"))[:1000]


def _state(name: str) -> str:
    application = ray_serve.status().applications.get(name)
    if application is None:
        return "Ray Serve does not know it"
    resources = ray.available_resources()
    return f"Ray Serve says {application.status}, {resources.get('CPU', 0):g} CPUs are free"


def _reachable(host: str) -> str:
    return "127.0.0.1" if host in ("0.0.0.0", "", "::") else host
