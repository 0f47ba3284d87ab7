"""A Ray session for one driver: the cluster that it names, or a private Ray that ends with it.

Invariant: whatever ends the session, a cluster is left as it was and nothing of a private Ray stays (private/start.py).

Covered: attach, start, end. Not covered: a cluster's life (docker/, `ray start`), jobs (jobs/client.py).
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

import ray

from cluster.errors import ClusterUnreachableError, summary_of
from cluster.runtime.join.check import check_cluster
from cluster.runtime.join.token import MODE_VARIABLE, find_token
from cluster.runtime.private.start import private_ray
from cluster.runtime.ray_private import authentication_variables


@dataclass(frozen=True)
class RaySession:
    """A live connection. `private` sessions end with the driver."""

    address: str
    private: bool


@contextmanager
def ray_session(address: str | None = None, *, logs: Path | None = None) -> Iterator[RaySession]:
    """Connect to `address` (or RAY_ADDRESS), else start a private local Ray; shut down what was started.

    `logs`: folder that receives Ray's own log files of a private session.
    Raises ClusterUnreachableError, MemoryShortError, ResourceError.
    """
    address = address or os.environ.get("RAY_ADDRESS")
    with _attached(address) if address else private_ray(logs) as found:
        yield RaySession(found, private=not address)


@contextmanager
def _attached(address: str) -> Iterator[str]:
    """Join a cluster that was there before; only the connection ends."""
    with ExitStack() as stack:
        token = find_token()
        if MODE_VARIABLE not in os.environ:
            # Ray itself sends no token to an address that is given, unless the mode says so
            stack.enter_context(authentication_variables({MODE_VARIABLE: "token" if token else "disabled"}))
        if os.environ.get("RAY_USE_TLS", "0") != "1":
            check_cluster(address, token=token if os.environ[MODE_VARIABLE] == "token" else None)
        try:
            ray.init(address=address, log_to_driver=False, configure_logging=False)
        except (ConnectionError, RuntimeError, ray.exceptions.RayError) as error:
            raise ClusterUnreachableError(
                f"Cannot join the Ray cluster at {address}",
                found=summary_of(error),
                remedy="Look at the head with 'ray status', or leave --address and RAY_ADDRESS out for a private Ray.",
            ) from error
        stack.callback(ray.shutdown)
        yield ray.get_runtime_context().gcs_address
