"""What a run on a cluster will need on its nodes, asked before data is read: its folder, and a free endpoint port.

Invariant: a run that would fail hours later, because one host has another disk at the run's path or because a port is
taken there, fails within seconds, and names the host.

Covered: every node; the folder only where work can be: a head that only coordinates needs none. Not covered: nodes that
join later; free room on disks.
"""

from __future__ import annotations

import secrets
from dataclasses import dataclass
from pathlib import Path

import ray

from cluster.errors import MantaError, PortInUseError, ResourceError
from cluster.runtime.nodes.tasks import NodeResult, on_every_node
from cluster.runtime.ports import claim_port
from cluster.runtime.ray_private import serve_address
from cluster.spec.run import RunSpec


@dataclass(frozen=True)
class _Seen:
    """What a node says."""

    mark: str | None
    """Content of the file that the driver has written into the run's folder; None where it is not there."""
    taken: MantaError | None
    """Why the endpoint's port cannot be had."""


def check_nodes(spec: RunSpec, folder: Path, *, serves: bool) -> None:
    """Raise ResourceError for a node that does not see `folder`, PortInUseError for one whose endpoint port is taken.

    `serves`: the run goes on to deploy. Needs a Ray session; blocks for seconds.
    """
    ports = _ports(spec) if serves and spec.serve is not None else []
    host = spec.serve.host if spec.serve is not None else ""
    mark, path = secrets.token_hex(8), folder / f".seen-{secrets.token_hex(4)}"
    path.write_text(mark, encoding="utf-8")
    try:
        results = on_every_node(lambda: _look(path, host, ports))
    finally:
        path.unlink(missing_ok=True)
    answers = [(result, result.value) for result in results if result.value is not None]
    workers = {node["NodeID"] for node in ray.nodes() if node["Resources"].get("CPU") or node["Resources"].get("GPU")}
    _check_folder(folder, [result for result, seen in answers if seen.mark != mark and result.node_id in workers])
    for result, seen in answers:
        if seen.taken is not None:
            raise PortInUseError(
                seen.taken.attempted,
                found=f"on host {result.address} {seen.taken.found}",
                rule="an endpoint listens on every node of its cluster",
                remedy=seen.taken.remedy,
                details={**seen.taken.details, "host": result.address},
            )


def _ports(spec: RunSpec) -> list[int]:
    """Ports that will be opened: none where Ray Serve listens already, for all endpoints of its Ray."""
    assert spec.serve is not None
    if serve_address() is not None:
        return []
    return [port for port in (spec.serve.port, spec.serve.grpc_port) if port]


def _look(path: Path, host: str, ports: list[int]) -> _Seen:
    """Runs on each node."""
    try:
        mark = path.read_text(encoding="utf-8")
    except OSError:
        mark = None
    for port in ports:
        try:
            claim_port(host, port)
        except PortInUseError as error:
            return _Seen(mark, error)
    return _Seen(mark, None)


def _check_folder(folder: Path, blind: list[NodeResult]) -> None:
    if not blind:
        return
    hosts = ", ".join(result.address for result in blind)
    raise ResourceError(
        f"Cannot run in {folder}",
        found=f"{hosts} {'does' if len(blind) == 1 else 'do'} not see what this host has written there",
        rule="a run's folder is one folder that all nodes of its cluster see at the same path",
        remedy="Mount one shared folder on every node, and name it with --runs-dir (or MANTA_RUNS_DIR there).",
        details={"hosts": [result.address for result in blind]},
    )
