"""Readings of hosts -> the `HostFacts` that a run is resolved with.

Invariant: nothing is made up: a host whose memory could not be read adds none to the sum, and the sum of none is an
error, because a plan on zero bytes is a wrong plan.
"""

from __future__ import annotations

from collections.abc import Iterable

from cluster.errors import ResourceError
from cluster.probe.hosts import HostProbe
from cluster.probe.probe import HostReading, Probe
from cluster.spec.resolve import GpuFacts, HostFacts


def read_host() -> HostReading:
    """This host. Small and picklable by name: a cluster calls it on every node."""
    return HostProbe().read()


def host_facts(probe: Probe | None = None) -> HostFacts:
    """Facts of this one host."""
    return sum_facts([(probe or HostProbe()).read()])


def sum_facts(readings: Iterable[HostReading]) -> HostFacts:
    """Facts of several hosts as one. Two Ray nodes on one host count once. Raises ResourceError."""
    hosts = list({reading.hostname: reading for reading in readings}.values())
    memory = [host.memory_total_bytes for host in hosts if host.memory_total_bytes is not None]
    if not memory:
        why = "; ".join(f"{host.hostname}: {host.reasons.get('memory_total_bytes', 'unknown')}" for host in hosts)
        raise ResourceError(
            "Cannot plan a run",
            found=f"no host's memory could be read ({why or 'no host was probed'})",
            remedy="See 'manta probe' for what each host says.",
        )
    gpus = {gpu.uuid: gpu for host in hosts for gpu in host.gpus or ()}
    return HostFacts(
        cpu_cores=sum(host.cpu_cores for host in hosts),
        memory_bytes=sum(memory),
        gpus=tuple(
            GpuFacts(
                uuid=gpu.uuid,
                name=gpu.name or "unknown GPU",
                memory_total_bytes=gpu.memory_total_bytes,
                memory_free_bytes=gpu.memory_free_bytes,
                compute_capability=gpu.compute_capability,
            )
            for gpu in gpus.values()
        ),
        nodes=len(hosts),
    )
