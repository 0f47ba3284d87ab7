"""Which endpoints their clients have unloaded: a mark in the cluster's own store, for the replicas that start later.

Invariant: while an endpoint is marked, a replica of it that starts loads nothing; `load`, a deploy and an undeploy
take the mark away. The store is Ray's (GCS), so that a mark outlives every replica. Every function blocks on one call.
"""

from __future__ import annotations

from cluster.runtime.ray_private import store_delete, store_has, store_put

NAMESPACE = b"manta-unloaded"


def is_unloaded(name: str) -> bool:
    """Whether the endpoint waits for `load`."""
    return store_has(name.encode(), namespace=NAMESPACE)


def remember_unloaded(name: str, unloaded: bool) -> bool:
    """Mark the endpoint, or take its mark away. Returns whether it was marked."""
    before = is_unloaded(name)
    if unloaded:
        store_put(name.encode(), b"1", namespace=NAMESPACE)
    elif before:
        store_delete(name.encode(), namespace=NAMESPACE)
    return before
