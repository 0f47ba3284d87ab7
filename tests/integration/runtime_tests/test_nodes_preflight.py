"""What a run on a cluster asks its nodes before it begins; a folder that one host alone sees is in test_two_hosts."""

from __future__ import annotations

import socket
from pathlib import Path

import pytest

from cluster.errors import PortInUseError
from cluster.runtime.nodes.preflight import check_nodes
from cluster.spec.load import load_spec


def test_a_taken_port_is_named_with_its_host_before_the_work(ray_local: str, tmp_path: Path) -> None:
    with socket.socket() as holder:
        holder.bind(("127.0.0.1", 0))
        holder.listen()
        port = holder.getsockname()[1]
        path = tmp_path / "s.yaml"
        path.write_text(f"version: 1\ndata: {{source: {{kind: sklearn, dataset: digits}}}}\nserve: {{port: {port}}}\n")
        spec = load_spec(path)
        with pytest.raises(PortInUseError, match=rf"127\.0\.0\.1:{port}: on host .* the port is held by .*pid"):
            check_nodes(spec, tmp_path, serves=True)
        check_nodes(spec, tmp_path, serves=False)
    check_nodes(spec, tmp_path, serves=True)
    assert [each.name for each in tmp_path.iterdir()] == ["s.yaml"], "nothing of the question stays"
