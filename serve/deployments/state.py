"""What Ray Serve's controller says of an endpoint: asking it needs no replica, and starts none."""

from __future__ import annotations

import re
from dataclasses import dataclass

from ray import serve as ray_serve

from serve.deployments.replica import DEPLOYMENT

RESTS, STARTS, FAILS = "AT ZERO", "STARTING", "FAILED"
REASON_CHARACTERS_MAX = 1000


@dataclass(frozen=True)
class ReplicaState:
    """Of an endpoint without a replica that answers."""

    state: str
    """RESTS: its next request starts one; STARTS; FAILS: none can start, and `reason` says why."""
    reason: str = ""


def state_without_replica(name: str) -> ReplicaState:
    """Why no replica of this endpoint answers. Needs a Ray session; blocks on one call."""
    application = ray_serve.status().applications.get(name)
    if application is None:
        return ReplicaState(FAILS, "Ray Serve does not know it")
    deployment = application.deployments.get(DEPLOYMENT)
    messages = [application.message, deployment.message if deployment is not None else ""]
    statuses = {application.status.value, deployment.status.value if deployment is not None else ""}
    if statuses & {"DEPLOY_FAILED", "UNHEALTHY"} or any("Traceback" in message for message in messages):
        return ReplicaState(FAILS, cause("\n".join(messages)))
    if deployment is not None and not deployment.replica_states:
        return ReplicaState(RESTS, "its next request starts a replica")
    return ReplicaState(STARTS, cause("\n".join(messages)) if any(messages) else "")


def cause(text: str) -> str:
    """The line of a replica's traceback that names the error."""
    lines = [line.strip() for line in text.splitlines()]
    named = [line for line in lines if re.match(r"(cluster\.errors\.)?[A-Za-z_.]*(Error|Exception): ", line)]
    found = named[-1] if named else next((line for line in reversed(lines) if line), "no message")
    return found[:REASON_CHARACTERS_MAX]
