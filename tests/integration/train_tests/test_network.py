"""Hosts whose own name resolves to 127.0.0.1: workers must be told the interface of the node's Ray address.

Two network namespaces with a cable between them. Needs root and Linux; else it is skipped. The same through Ray Train
is tests/e2e/cluster_tests/test_two_hosts.py.
"""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.e2e.cluster_tests.head import clean_environment
from tests.e2e.cluster_tests.test_two_hosts import can_make_namespaces
from trainers.launch.process_group import interface_of

SCRIPT = Path(__file__).with_name("two_networks.sh")


def meet(folder: Path, how: str) -> list[dict]:
    shutil.copy(SCRIPT, folder)
    outer = ["unshare", "-m", "-p", "-n", "-f", "--kill-child", "bash", str(folder / SCRIPT.name), str(folder)]
    command = [sys.executable, "-m", "tests.integration.train_tests.meet", str(folder), how]
    done = subprocess.run([*outer, *command], env=clean_environment(), capture_output=True, text=True, timeout=240)
    files = [folder / f"facts.{how}.{rank}.json" for rank in (0, 1)]
    assert all(file.exists() for file in files), done.stderr
    return [json.loads(file.read_text(encoding="utf-8")) for file in files]


@pytest.mark.slow
@pytest.mark.timeout(500)
@pytest.mark.skipif(not can_make_namespaces(), reason="needs root and Linux namespaces")
def test_gloo_meets_over_the_interface_of_the_nodes_address_where_the_host_name_is_127_0_0_1(tmp_path: Path) -> None:
    named = meet(tmp_path, "named")
    assert [facts["host"] for facts in named] == ["127.0.0.1"] * 2
    assert [facts["interface"] for facts in named] == ["e0", "e1"]
    assert [facts["sum"] for facts in named] == [3.0, 3.0], named
    unnamed = meet(tmp_path, "unnamed")
    assert [facts["sum"] for facts in unnamed] == [None, None], "the shortcut: gloo alone announces 127.0.0.1"
    assert all(facts["error"] for facts in unnamed)


def test_interface_is_found_by_address() -> None:
    assert interface_of("127.0.0.1") == "lo"
    assert interface_of("203.0.113.77") is None
