"""Load a version beside the endpoint, before any replica hears of it: in a process of its own on a node of the cluster.

The process verifies the bundle, loads it into the engine that replicas use, warms it up and compares its answers, as
a replica does; then it ends, and gives its memory back. Whatever a bundle does to it (raise, crash, hang, exhaust
memory) happens to nobody else.

Covered: one node, on a CPU, and on a GPU where one has room beside what serves. Not covered: nodes that differ (each
replica loads and checks by itself again); a GPU that is full: then the replicas are the first to load it.
"""

from __future__ import annotations

import logging
from typing import Any

import ray
from ray.exceptions import GetTimeoutError, RayError, WorkerCrashedError

from cluster.bundle import read_manifest
from cluster.errors import EndpointError, MantaError, summary_of
from cluster.runtime.nodes.gpu_memory import GPU_MEMORY
from serve.config import EndpointConfig
from serve.deployments.placement import GpuShare, gpu_nodes, gpu_share, replicas_that_fit
from serve.models.loading import load_engine

LOG = logging.getLogger(__name__)


def prove(config: EndpointConfig, *, timeout_s: float) -> None:
    """Load `config.subject` beside the endpoint and check it. Blocks; raises what a replica would raise.

    EndpointError where the process dies or does not end in time.
    """
    options = _options(config)
    if options is None:
        LOG.warning("no GPU has room to load version %s beside what serves: replicas load it", config.subject.version)
        return
    # one call a process: what an engine leaves behind ends with it
    task = ray.remote(max_retries=0, max_calls=1, **options)(_load)
    reference = task.remote(config.to_json())
    try:
        problem: MantaError | None = ray.get(reference, timeout=timeout_s)
    except GetTimeoutError:
        ray.cancel(reference, force=True)
        raise _refused(config, f"it was not loaded within {timeout_s:g} s") from None
    except WorkerCrashedError:
        raise _refused(config, "the process that loaded it died") from None
    except RayError as error:
        raise _refused(config, summary_of(error)) from None
    except KeyboardInterrupt:
        ray.cancel(reference, force=True)
        raise
    if problem is not None:
        raise problem


def _load(raw: dict[str, Any]) -> MantaError | None:
    """Runs on a node."""
    config = EndpointConfig.from_json(raw)
    try:
        load_engine(config, config.subject).engine.close()
    except MantaError as error:
        return error
    return None


def _options(config: EndpointConfig) -> dict[str, Any] | None:
    """What the process reserves; None where no GPU has room for it now."""
    if config.device == "cpu":
        return {"num_cpus": 0}
    nodes = gpu_nodes()
    bundle, variant = read_manifest(config.subject.folder), config.subject.variant
    share = gpu_share(bundle.variant(variant).footprint_bytes, nodes) if nodes else GpuShare(1.0, 0)
    if replicas_that_fit(share, nodes) < 1:
        return None
    resources = {GPU_MEMORY: share.memory_mib} if share.memory_mib else {}
    return {"num_cpus": 0, "num_gpus": share.num_gpus, "resources": resources}


def _refused(config: EndpointConfig, found: str) -> EndpointError:
    return EndpointError(
        f"Cannot deploy version {config.subject.version} of '{config.name}'",
        found=found,
        rule="a version is loaded, warmed up and checked in a process of its own before replicas hear of it",
        remedy="Look at Ray's log of that process; what was served before still is.",
    )
