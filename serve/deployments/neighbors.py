"""Who the other replicas of an endpoint are, and on which ports of their own they answer: Ray Serve's controller knows.

The ports are those that HAProxy sends requests to. Covered: HTTP. Not covered: replicas that have not started yet.
"""

from __future__ import annotations

import logging
from logging.handlers import RotatingFileHandler
from pathlib import Path
from typing import Any

import ray
from ray import serve as ray_serve
from ray.serve._private.constants import SERVE_CONTROLLER_NAME, SERVE_NAMESPACE
from ray.serve._private.logging_utils import get_serve_logs_dir

from serve.peers import Peer, Peers

FILE_BYTES, FILES = 100 << 20, 5  # Ray's own rotation


def own_name() -> str:
    """This replica's short name, as in Ray Serve's logs."""
    return str(ray_serve.get_replica_context().replica_id.unique_id)


def endpoint_peers(name: str) -> Peers:
    """Call it in a replica of endpoint `name`."""
    mine = own_name()

    async def others() -> list[Peer]:
        controller = ray.get_actor(SERVE_CONTROLLER_NAME, namespace=SERVE_NAMESPACE)
        groups = await controller.get_target_groups.remote(app_name=name, from_proxy_manager=True)
        targets = [t for group in groups if str(group.protocol.value).lower() == "http" for t in group.targets]
        found = {replica_of(target.name): target for target in targets}
        return [Peer(replica, _urls(target, name)) for replica, target in found.items() if replica != mine]

    return Peers(mine, others)


def access_file(name: str) -> logging.Handler:
    """Where this replica's access log goes: beside Ray Serve's own files of the node, ended by size as they are."""
    folder = Path(get_serve_logs_dir())
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"access_{name}_{own_name()}.jsonl"
    return RotatingFileHandler(path, maxBytes=FILE_BYTES, backupCount=FILES, delay=True)


def replica_of(target: str) -> str:
    """`…#endpoint#replica#k3j2h1` -> `k3j2h1`."""
    return target.rsplit("#", 1)[-1]


def _urls(target: Any, name: str) -> tuple[str, ...]:
    """A replica of this node may listen on loopback alone (the endpoint's `host`)."""
    hosts = ["127.0.0.1"] if target.ip == ray.util.get_node_ip_address() else []
    hosts.append(f"[{target.ip}]" if ":" in target.ip else target.ip)
    return tuple(f"http://{host}:{target.port}/{name}" for host in hosts)
