"""The other replicas of an endpoint and the ports of their own that they answer on, from Ray Serve's controller.

The ports are those that HAProxy sends requests to. Covered: HTTP. Not covered: replicas that have not started yet.
"""

from __future__ import annotations

import logging
from logging.handlers import RotatingFileHandler

import ray
from ray import serve as ray_serve

from cluster.runtime.ray_private import ReplicaTarget, replica_targets, serve_logs_folder
from serve.handlers.peers import Peer, Peers

FILE_BYTES, FILES = 100 << 20, 5  # Ray's own rotation


def own_name() -> str:
    """This replica's short name, as in Ray Serve's logs."""
    return str(ray_serve.get_replica_context().replica_id.unique_id)


def endpoint_peers(name: str) -> Peers:
    """Call it in a replica of endpoint `name`."""
    mine = own_name()

    async def others() -> list[Peer]:
        found = {replica_of(target.name): target for target in await replica_targets(name)}
        return [Peer(replica, _urls(target, name)) for replica, target in found.items() if replica != mine]

    return Peers(mine, others)


def access_file(name: str) -> logging.Handler:
    """Where this replica's access log goes: beside Ray Serve's own files of the node, ended by size as they are."""
    folder = serve_logs_folder()
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"access_{name}_{own_name()}.jsonl"
    return RotatingFileHandler(path, maxBytes=FILE_BYTES, backupCount=FILES, delay=True)


def replica_of(target: str) -> str:
    """`…#endpoint#replica#k3j2h1` -> `k3j2h1`."""
    return target.rsplit("#", 1)[-1]


def _urls(target: ReplicaTarget, name: str) -> tuple[str, ...]:
    """A replica of this node may listen on loopback alone (the endpoint's `host`)."""
    hosts = ["127.0.0.1"] if target.ip == ray.util.get_node_ip_address() else []
    hosts.append(f"[{target.ip}]" if ":" in target.ip else target.ip)
    return tuple(f"http://{host}:{target.port}/{name}" for host in hosts)
