"""Ports that are chosen: free, and none that a connection of another program could take before its use."""

from __future__ import annotations

import socket
from pathlib import Path

import pytest

from cluster.errors import PortInUseError
from cluster.runtime import ports

LOCAL_PORTS = Path("/proc/sys/net/ipv4/ip_local_port_range")


def test_a_chosen_port_is_free_and_none_that_connections_are_given() -> None:
    chosen = {ports.claim_port("127.0.0.1", 0), *ports.free_ports(4)}
    first = int(LOCAL_PORTS.read_text().split()[0]) if LOCAL_PORTS.exists() else 32_768
    assert all(20_000 <= port < first for port in chosen)
    for port in chosen:
        assert ports.claim_port("127.0.0.1", port) == port


def test_a_held_port_is_not_chosen_and_none_free_leaves_the_choice_to_the_system(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    free = ports.claim_port("127.0.0.1", 0)
    with socket.socket() as holder:
        holder.bind(("127.0.0.1", 0))
        holder.listen()
        held = holder.getsockname()[1]
        monkeypatch.setattr(ports, "CHOSEN_PORTS", (held, free))
        assert {ports.claim_port("127.0.0.1", 0) for _ in range(5)} == {free}
        monkeypatch.setattr(ports, "CHOSEN_PORTS", (held,))
        assert ports.claim_port("127.0.0.1", 0) not in (0, held)


def test_a_host_that_cannot_be_bound_is_one_sentence_and_one_try() -> None:
    with pytest.raises(PortInUseError, match=r"Cannot serve on 203\.0\.113\.7:0: "):  # RFC 5737: nobody's
        ports.claim_port("203.0.113.7", 0)
