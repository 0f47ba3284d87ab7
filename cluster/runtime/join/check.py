"""Is there a cluster at this address that this driver can use? Asked over plain gRPC, before Ray itself connects.

Ray's own client waits up to 40 s for an address where nothing answers, prints to the terminal meanwhile, and ends
the process with an abort when a token is required and none is there (2.60, measured). A direct call of the head's
CheckAlive answers each of these within milliseconds, with a reason.

Invariant: `check_cluster` returns or raises ClusterUnreachableError within about 10 s, whatever is at the address.

Covered: unreachable, refused token, missing token, another service, another version, stale, no node on this host.
Not covered: TLS between Ray's processes (RAY_USE_TLS): the check is skipped and Ray connects by itself.
"""

from __future__ import annotations

import os
import platform
import time
from dataclasses import dataclass
from typing import NoReturn

import grpc
import psutil
import ray

from cluster.errors import ClusterUnreachableError
from cluster.runtime.join.token import TOKEN_REMEDY
from cluster.runtime.ray_private import HeadCalls

CALL_TIMEOUT_S = 4.0  # a head that is alive answers in milliseconds; a swapped-out one in a second or two
FIRST_NODE_WAIT_S = 5.0  # the head's own node registers seconds after its GCS answers
FIRST_NODE_POLL_S = 0.2


@dataclass(frozen=True)
class ClusterFacts:
    """What the head said of itself."""

    address: str
    ray_version: str
    python_version: str | None
    num_nodes_alive: int


def check_cluster(address: str, *, token: str | None, timeout_s: float = CALL_TIMEOUT_S) -> ClusterFacts:
    """Ask the head at `host:port` for its version and nodes. Raises ClusterUnreachableError with the reason."""
    attempted = f"Cannot use the Ray cluster at {address}"
    _check_form(attempted, address)
    metadata = [("authorization", f"Bearer {token}")] if token else []
    with grpc.insecure_channel(address, options=[("grpc.enable_http_proxy", 0)]) as channel:
        head = HeadCalls(channel, timeout_s=timeout_s, metadata=metadata)
        try:
            version, python = head.ray_version(), head.python_version()
            living = _living_nodes(head)
        except grpc.RpcError as error:
            _refused(attempted, error, token)
    facts = ClusterFacts(address, version, python, len(living))
    _check_version(attempted, facts)
    _check_nodes(attempted, living)
    return facts


def _living_nodes(head: HeadCalls) -> list[str]:
    """Ids of the live nodes; a head that has just started has none for a moment."""
    deadline = time.monotonic() + FIRST_NODE_WAIT_S
    while True:
        living = head.living_nodes()
        if living or time.monotonic() > deadline:
            return living
        time.sleep(FIRST_NODE_POLL_S)


def _check_form(attempted: str, address: str) -> None:
    host, _, port = address.rpartition(":")
    if host and port.isdigit() and "/" not in address:
        return
    if address.startswith(("http://", "https://")):
        remedy = "That is a dashboard's address: 'manta submit SPEC --address …' takes it. Here give HOST:PORT."
    elif address.startswith("ray://"):
        remedy = "Training cannot run through Ray Client: run on a node of the cluster, or use 'manta submit'."
    else:
        remedy = "Give HOST:PORT of the head, for example 10.0.0.5:6379, with --address or RAY_ADDRESS."
    raise ClusterUnreachableError(
        attempted,
        found="the address is not HOST:PORT",
        rule="a run joins exactly the cluster that it names",
        remedy=remedy,
    )


def _refused(attempted: str, error: grpc.RpcError, token: str | None) -> NoReturn:
    code, details = error.code(), (error.details() or "no details").splitlines()[0]
    if code in (grpc.StatusCode.UNAUTHENTICATED, grpc.StatusCode.PERMISSION_DENIED):
        found = "it refuses the token that was given" if token else "it demands a token and none was given"
        raise ClusterUnreachableError(attempted, found=found, remedy=TOKEN_REMEDY) from None
    if code == grpc.StatusCode.DEADLINE_EXCEEDED:
        found = f"no answer within {CALL_TIMEOUT_S:g} s"
    elif code == grpc.StatusCode.UNAVAILABLE and "http1" not in details:
        found = "nothing answers there" if "refused" in details.lower() else f"nothing answers there ({details})"
    else:
        found = f"what answers there is not a Ray head ({details or code.name})"
    raise ClusterUnreachableError(
        attempted,
        found=found,
        rule="the address is that of the head's GCS, by default port 6379",
        remedy="Check with 'ray status --address …' on the head, start it with 'ray start --head', or leave --address "
        "and RAY_ADDRESS out for a private local Ray.",
    ) from None


def _check_version(attempted: str, facts: ClusterFacts) -> None:
    own_python = platform.python_version()
    level = os.environ.get("RAY_DEFAULT_PYTHON_VERSION_MATCH_LEVEL", "patch")
    parts = 2 if level == "minor" else 3
    python = facts.python_version or own_python
    if facts.ray_version in ("", ray.__version__) and python.split(".")[:parts] == own_python.split(".")[:parts]:
        return
    raise ClusterUnreachableError(
        attempted,
        found=f"it runs Ray {facts.ray_version} on Python {python}, "
        f"this is Ray {ray.__version__} on Python {own_python}",
        rule="Ray demands equal versions on every node and driver",
        remedy="Run Manta in an environment (or image) with the cluster's versions, or update the cluster.",
    )


def _check_nodes(attempted: str, living: list[str]) -> None:
    if not living:
        raise ClusterUnreachableError(
            attempted,
            found="its head answers but no node of it is alive",
            rule="a stale head has lost its workers and itself",
            remedy="Start the cluster again: 'ray stop' and 'ray start --head' on the head.",
        )
    here = set(_local_nodes())
    if not here & set(living):
        raise ClusterUnreachableError(
            attempted,
            found=f"it has {len(living)} live node{'s' if len(living) > 1 else ''}, none of them on this host",
            rule="a driver talks to the Ray node on its own host",
            remedy="Run on a node of the cluster, join this host with 'ray start --address=…', or use 'manta submit'.",
        )


def _local_nodes() -> list[str]:
    """Ids of the Ray nodes whose raylet runs on this host (Ray finds them the same way)."""
    flag = "--node_id="
    commands = (process.info["cmdline"] or [] for process in psutil.process_iter(["cmdline"]))
    return [word.removeprefix(flag) for command in commands for word in command if word.startswith(flag)]
