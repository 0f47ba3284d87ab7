"""An endpoint as Ray Serve has it: its configuration there, handing over another one, waiting until it answers.

The `EndpointConfig` lies in the `user_config` of the application's one deployment, so that running replicas receive a
change and replicas that start receive what is served.

Covered: one application. Not covered: which configuration, and what becomes of one that fails (endpoint.py).
"""

from __future__ import annotations

import importlib.metadata
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import ray
from pydantic import ValidationError
from ray import serve as ray_serve
from ray.serve.config import AutoscalingConfig, AutoscalingPolicy
from ray.serve.schema import LoggingConfig

from cluster.errors import EndpointError
from cluster.runtime.ray_private import serve_details, with_code_version
from cluster.spec.serve import ReplicaSpec
from serve.client import EndpointClient
from serve.config import CONFIG_FORM, EndpointConfig
from serve.deployments.replica import DEPLOYMENT, endpoint_deployment
from serve.deployments.scaling import LOOK_BACK_S, METRICS_INTERVAL_S
from serve.deployments.state import cause
from serve.deployments.unloaded import is_unloaded
from serve.models.repository import LOADING, NOT_KEPT, UNLOADED

# Ray Serve's own limit is only a backstop: the batcher's bounded queue refuses first, with a protocol answer
ONGOING_REQUESTS_MAX = 8192
POLL_S = 0.05
PROBE_TIMEOUT_S = 1.0
STATUS_EVERY_S = 0.5
REASONS_PASSING = (LOADING, UNLOADED, NOT_KEPT)
TAKEN_WAIT_S = 60.0  # of a controller on a crowded host
CONSTRUCTOR_TRIES = 2  # a model that does not load will not load the third time


@dataclass(frozen=True)
class Place:
    """Where an endpoint is put, and what Ray Serve has there."""

    url: str
    token: str
    there: EndpointConfig | None
    """Ray Serve's configuration of it now."""
    reserved: dict[str, Any]
    """What each of its replicas has reserved."""
    replica: dict[str, Any]
    """What each is to reserve."""

    def adjusted(self, wanted: EndpointConfig) -> EndpointConfig:
        """`wanted` with what served before to fall back to, and after an unload as a value that replicas are given."""
        before: str | None = self.there.default_version if self.there is not None else wanted.default_version
        if before == wanted.default_version:  # not every replica may have it yet
            before = self.there.fallback if self.there is not None else wanted.fallback
        fallback = before if before in {each.version for each in wanted.versions} else None
        loads = wanted.loads + 1 if is_unloaded(wanted.name) else wanted.loads
        return wanted.model_copy(update={"fallback": fallback, "loads": loads})

    def without_fewer_replicas(self, config: EndpointConfig) -> EndpointConfig:
        """The replicas of now, where a new version comes with fewer: Ray Serve changes no replica while one drains."""
        before = self.there.spec.replicas if self.there is not None else None
        if self.there is None or before is None or self.there.default_version == config.default_version:
            return config
        after = config.spec.replicas
        if after.max >= before.max and after.min >= before.min:
            return config
        return config.model_copy(update={"spec": config.spec.model_copy(update={"replicas": before})})


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


def reserved_now(name: str) -> dict[str, Any]:
    """What each replica of an endpoint has reserved."""
    kept = ("num_cpus", "num_gpus", "resources")
    have = _deployment_config(name).get("ray_actor_options") or {}
    return {key: have[key] for key in kept if have.get(key)}


def _deployment_config(name: str) -> dict[str, Any]:
    application = serve_details().get("applications", {}).get(name, {})
    found: dict[str, Any] = application.get("deployments", {}).get(DEPLOYMENT, {}).get("deployment_config", {})
    return found


def hand_over(config: EndpointConfig, replica: dict[str, Any]) -> None:
    """Give Ray Serve a configuration; returns when it is the application's, before the replicas have it.

    Called again with the same, it changes nothing.
    """
    before = configuration(config.name)
    code = f"{importlib.metadata.version('manta-ml')}+{CONFIG_FORM}"
    deployment = with_code_version(endpoint_deployment(), code, deployment_options(config, replica))
    application = deployment.bind(config.name)
    ray_serve.run_many(
        [ray_serve.RunTarget(application, name=config.name, route_prefix=f"/{config.name}")],
        wait_for_applications_running=False,
    )
    deadline_s = time.monotonic() + TAKEN_WAIT_S
    while before != config and configuration(config.name) == before and time.monotonic() < deadline_s:
        time.sleep(POLL_S)


def deployment_options(config: EndpointConfig, replica: dict[str, Any]) -> dict[str, Any]:
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


def wait(config: EndpointConfig, url: str, token: str, check: Callable[[], None]) -> None:
    """Until every replica has `config.subject` and it answers through the public port.

    `check` is called again and again, and may raise. Raises EndpointError.
    """
    deadline_s = time.monotonic() + config.spec.ready_timeout_s
    next_status_s = 0.0
    settled = False
    # short: while there is no replica, Ray Serve's fallback proxy holds a request instead of answering
    with EndpointClient(url, config.name, token=token, timeout_s=PROBE_TIMEOUT_S) as client:
        while True:
            now = time.monotonic()
            if now >= next_status_s:
                check()
                settled = _settled(config.name)
                next_status_s = now + STATUS_EVERY_S
            if client.serves(config.subject.version):
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
        raise _not_deployed(name, cause("\n".join(messages)))
    return application.status.value == "RUNNING"


def _raise_if_refused(client: EndpointClient, config: EndpointConfig) -> None:
    """The index of a replica that serves an older version has the reason why it refused the new one."""
    for entry in client.index():
        refused = entry["version"] == config.subject.version and entry["state"] == "UNAVAILABLE"
        if refused and entry["reason"] not in REASONS_PASSING:
            raise _not_deployed(config.name, f"version {entry['version']}: {entry['reason']}")


def _not_deployed(name: str, found: str) -> EndpointError:
    return EndpointError(
        f"Cannot deploy endpoint '{name}'",
        found=found,
        rule="a version is served only after it is loaded, warmed up and gives the bundle's sample outputs",
        remedy="The version before, if there was one, still answers.",
    )


def _state(name: str) -> str:
    application = ray_serve.status().applications.get(name)
    if application is None:
        return "Ray Serve does not know it"
    resources = ray.available_resources()
    return f"Ray Serve says {application.status}, {resources.get('CPU', 0):g} CPUs are free"
