"""Facts about hosts and GPUs, never decisions: `read_host`, `host_facts`, `sum_facts`."""

from cluster.probe.facts import host_facts, read_host, sum_facts
from cluster.probe.probe import FakeProbe, GpuReading, HostReading, Probe

__all__ = ["FakeProbe", "GpuReading", "HostReading", "Probe", "host_facts", "read_host", "sum_facts"]
