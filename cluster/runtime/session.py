"""A Ray session for one driver: the cluster it was told to use, or a private one that ends with it.

First version: start or attach, and leave nothing behind.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

import ray

from cluster.runtime.serve_place import private_serve_place

LOCAL_LOGICAL_CPUS_MIN = 8  # logical: a laptop's two cores must hold the drivers, workers and replicas of one run


@dataclass(frozen=True)
class RaySession:
    """A live connection. `private` sessions end with the driver."""

    address: str
    private: bool


@contextmanager
def ray_session(address: str | None = None, *, logs: Path | None = None) -> Iterator[RaySession]:
    """Connect to `address` (or RAY_ADDRESS), else start a private local Ray; shut down what was started.

    `logs`: folder that receives Ray's own log files of a private session.
    """
    address = address or os.environ.get("RAY_ADDRESS")
    with ExitStack() as stack:
        if address:
            ray.init(address=address, log_to_driver=False, configure_logging=False)
        else:
            stack.enter_context(private_serve_place())
            ray.init(
                address="local",
                num_cpus=max(LOCAL_LOGICAL_CPUS_MIN, 2 * (os.cpu_count() or 1)),
                object_store_memory=200 << 20,
                include_dashboard=True,
                log_to_driver=False,
                configure_logging=False,
            )
        stack.callback(ray.shutdown)
        yield RaySession(ray.get_runtime_context().gcs_address, private=not address)
