"""Facts about hosts and GPUs, never decisions: `read_host`, `host_facts`, `sum_facts`."""

from cluster.probe.probe import GpuReading, HostReading, Probe
from cluster.probe.totals import host_facts, read_host, sum_facts

__all__ = ["GpuReading", "HostReading", "Probe", "host_facts", "read_host", "sum_facts"]
