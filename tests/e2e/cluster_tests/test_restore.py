"""A cluster whose head is lost: what it served is recorded outside of Ray, and served again by one command."""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest

from cluster.runtime.private.haproxy import place_environment
from tests.bundles import make_bundle
from tests.e2e.cluster_tests.head import Head, free_ports, start_head, wait_for


def manta(head: Head, *words: str, code: int = 0) -> Any:
    command = [sys.executable, "-c", "from cluster.cli import main; main()", *words, "--address", head.gcs, "--json"]
    done = subprocess.run(command, env=head.environment(), capture_output=True, text=True, timeout=150)
    assert done.returncode == code, done.stderr
    return json.loads(done.stdout)


@pytest.fixture
def place() -> Iterator[Path]:
    with tempfile.TemporaryDirectory(prefix="mg-", dir="/tmp") as folder:  # sockets have short paths
        yield Path(folder)


@pytest.mark.soak  # two heads start, and a command after the other
def test_what_a_lost_head_served_is_served_again_with_its_versions(tmp_path: Path, place: Path) -> None:
    (port,) = free_ports(1)
    first, second = (make_bundle(tmp_path / str(seed), name="shop", item_shape=(4,), seed=seed) for seed in (1, 2))
    rows = tmp_path / "rows.json"
    rows.write_text("[[1, 2, 3, 4]]")
    own = place_environment(place)  # where HAProxy lies: not in the place of another Ray of this session
    with start_head(tmp_path, port=port, **own) as head:
        assert manta(head, "deploy", str(first), "--name", "shop", "--port", "0")["version"] == "1"
        assert manta(head, "deploy", str(second), "--name", "shop", "--reason", "more data")["version"] == "2"
        before = manta(head, "predict", "shop", str(rows))
        (gcs,) = [each for each in psutil.Process(head.process.pid).children(True) if each.name() == "gcs_server"]
        gcs.kill()
        wait_for(lambda: head.process.poll() is not None, 60)
    with start_head(tmp_path, port=port, **own) as head:
        (row,) = manta(head, "endpoints")["endpoints"]
        assert (row["name"], row["state"], "--restore" in row["reason"]) == ("shop", "LOST", True)
        (found,) = manta(head, "deploy", "--restore")["endpoints"]
        assert (found["name"], found["version"]) == ("shop", "2")
        assert manta(head, "predict", "shop", str(rows))["predictions"] == before["predictions"]
        assert manta(head, "deploy", "--restore")["endpoints"] == []
        assert manta(head, "rollback", "shop")["version"] == "1"
        history = manta(head, "endpoints", "shop", "--history")
        assert [(each["version"], each["state"]) for each in history["versions"]] == [
            ("1", "serving"),
            ("2", "retired"),
        ]
        assert "more data" in [each["by"]["reason"] for each in history["changes"]]
        assert manta(head, "undeploy", "shop")["ok"]
        assert manta(head, "endpoints")["endpoints"] == []
