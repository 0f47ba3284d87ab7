"""What `manta probe` prints: cores, memory, /dev/shm and GPUs by UUID of this host, or of every node of a cluster.

A value that could not be read is shown as "unknown" with its reason, never as 0.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

if TYPE_CHECKING:  # readings are loaded by the verb: `manta --help` stays fast
    from cluster.probe import GpuReading, HostReading

UNKNOWN = "unknown"


def read_nodes(address: str | None) -> list[dict[str, Any]]:
    """This host, or every node of the cluster at `address`, each with the reading or the problem."""
    from cluster.probe import read_host

    return _cluster(address) if address else [{"address": None, "problem": None, "host": read_host()}]


def _cluster(address: str) -> list[dict[str, Any]]:
    from cluster.probe import read_host
    from cluster.runtime.nodes.tasks import on_every_node
    from cluster.runtime.session import ray_session

    with ray_session(address):
        results = on_every_node(read_host)
    return [{"address": result.address, "problem": result.problem, "host": result.value} for result in results]


def node_to_json(node: dict[str, Any]) -> dict[str, Any]:
    """JSON-able form."""
    host = node["host"]
    return {**node, "host": None if host is None else host.model_dump(mode="json")}


def print_node(node: dict[str, Any]) -> None:
    """A line of the host, and a table of its GPUs."""
    console = Console()
    console.print(_host_line(node), soft_wrap=True)
    _print_gpus(console, node)


def _host_line(node: dict[str, Any]) -> Text:
    host: HostReading | None = node["host"]
    if host is None:
        return Text.assemble((str(node["address"]), "bold"), f": {node['problem']}")
    where = f" ({node['address']})" if node["address"] else ""
    load = UNKNOWN if host.load_1min is None else f"{host.load_1min:.1f}"
    return Text.assemble(
        (host.hostname, "bold"),
        f"{where}: {host.cpu_cores} cores, load {load}; "
        f"memory {_gib(host.memory_available_bytes)} free of {_gib(host.memory_total_bytes)}; "
        f"/dev/shm {_gib(host.shared_memory_free_bytes)} free of {_gib(host.shared_memory_total_bytes)}; "
        f"disk {_gib(host.disk_free_bytes)} free",
    )


def _print_gpus(console: Console, node: dict[str, Any]) -> None:
    host: HostReading | None = node["host"]
    if host is None:
        return
    if not host.gpus:
        why = host.reasons.get("gpus", "no reason was given")
        what = "GPUs unknown" if host.gpus is None else "no GPU"
        console.print(Text(f"  {what}: {why}"), soft_wrap=True)
        return
    table = Table(box=box.SIMPLE_HEAD, header_style="bold", title=f"GPUs of {host.hostname}")
    for column in ("UUID", "name", "memory", "free", "capability", "use", "temperature", "unreadable"):
        table.add_column(column)
    for gpu in host.gpus:
        table.add_row(*_gpu_row(gpu))
    console.print(table)


def _gpu_row(gpu: GpuReading) -> list[str]:
    capability = gpu.compute_capability
    return [
        gpu.uuid,
        gpu.name or UNKNOWN,
        _gib(gpu.memory_total_bytes),
        _gib(gpu.memory_free_bytes),
        UNKNOWN if capability is None else f"{capability[0]}.{capability[1]}",
        UNKNOWN if gpu.utilization_percent is None else f"{gpu.utilization_percent} %",
        UNKNOWN if gpu.temperature_celsius is None else f"{gpu.temperature_celsius} °C",
        "; ".join(f"{name}: {why}" for name, why in gpu.reasons.items()),
    ]


def _gib(value: int | None) -> str:
    return UNKNOWN if value is None else f"{value / 2**30:.1f} GiB"
