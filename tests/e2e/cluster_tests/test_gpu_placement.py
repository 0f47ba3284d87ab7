"""GPU models on a real Ray of two nodes: placed by measured memory, refused with numbers, never an old one harmed.

The nodes' GPUs are those of a fake libnvidia-ml.so.1 that Ray and the probe load as they load the real one; the model
is simulated (serve/testing.py). Not covered: a real GPU.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import psutil
import pytest

from cluster.runtime.private.haproxy import place_environment
from tests.bundles import make_simulated_bundle
from tests.e2e.cluster_tests.head import Head, clean_environment, end_process, start_head, wait_for
from tests.nvml.library import build, environment, write_gpus

GIB_MIB = 1024
GIB = 1 << 30
JOIN_S = 60.0
SECOND = "127.0.0.2"


@dataclass(frozen=True)
class Cluster:
    """A head with a GPU of 16 GiB and a node with one of 40 GiB; their memory as the files say."""

    head: Head
    small: Path
    large: Path
    home: Path

    def manta(self, *words: str, code: int = 0) -> Any:
        """`manta …` on this cluster."""
        command = [sys.executable, "-c", "from cluster.cli import main; main()", *words, "--address", self.head.gcs]
        done = subprocess.run(
            [*command, "--json"],
            env=self.head.environment(HOME=str(self.home), TMPDIR=str(self.home)),
            capture_output=True,
            text=True,
            timeout=150,
        )
        assert done.returncode == code, done.stderr
        return json.loads(done.stdout)


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    folder = tmp_path_factory.mktemp("gpus")
    library = build(folder)
    mine = os.getpid()
    small = write_gpus(folder / "small", ("GPU-small", 16 * GIB_MIB, 15 * GIB_MIB, [mine]))
    large = write_gpus(folder / "large", ("GPU-large", 40 * GIB_MIB, 39 * GIB_MIB, []))
    with ExitStack() as stack:
        # two nodes of one machine: each has a place of its own for HAProxy, as two hosts have
        own = [Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="mg-", dir="/tmp"))) for _ in range(2)]
        head = stack.enter_context(start_head(folder, **environment(library, small), **place_environment(own[0])))
        variables = {**environment(library, large), **place_environment(own[1])}
        stack.enter_context(second_node(head, folder, variables))
        wait_for(lambda: living_nodes(head) == 2, JOIN_S)
        home = folder / "user"
        home.mkdir()
        yield Cluster(head, small, large, home)


class second_node:
    """`ray start` of a node at `SECOND`, through the same command that a cluster's nodes use."""

    def __init__(self, head: Head, folder: Path, variables: dict[str, str]) -> None:
        flags = [f"--node-ip-address={SECOND}", "--num-cpus=4", f"--object-store-memory={100 << 20}"]
        flags += ["--min-worker-port=0", "--max-worker-port=0"]
        command = [sys.executable, "-m", "cluster.runtime.node", "ray", "start", "--block", f"--address={head.gcs}"]
        own = {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": head.token, "HOME": str(folder / "home")}
        own["RAY_GRACEFUL_SHUTDOWN_DRAIN_TIMEOUT_S"] = "0"
        self._log = (folder / "node.log").open("wb")
        self._process = subprocess.Popen(
            [*command, *flags],
            env={**clean_environment(), **own, **variables},
            stdout=self._log,
            stderr=self._log,
            start_new_session=True,
        )

    def __enter__(self) -> second_node:
        return self

    def __exit__(self, *_: object) -> None:
        end_process(self._process)
        self._log.close()


def living_nodes(head: Head) -> int:
    answer = httpx.get(f"{head.url}/api/v0/nodes", headers={"Authorization": f"Bearer {head.token}"}, timeout=10)
    return sum(node["state"] == "ALIVE" for node in answer.json()["data"]["result"]["result"])


def places(name: str) -> list[str]:
    """The node of each replica of an endpoint: a worker is a child of its node's raylet."""
    found = []
    for process in psutil.process_iter(["cmdline"]):
        if f"ServeReplica:{name}:" in " ".join(process.info["cmdline"] or []):
            raylet = process.parent().cmdline()
            found.append("large" if f"--node_ip_address={SECOND}" in raylet else "small")
    return sorted(found)


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_replicas_go_where_their_memory_is_and_one_too_many_is_refused(cluster: Cluster, tmp_path: Path) -> None:
    ten = make_simulated_bundle(tmp_path / "ten", name="ten", footprint_bytes=10 * GIB)
    thirty = make_simulated_bundle(tmp_path / "thirty", name="thirty", footprint_bytes=28 * GIB)
    words = ("--device", "cuda", "--port", "0", "--host", "0.0.0.0")  # both nodes are on this machine, at two addresses
    found = cluster.manta("deploy", str(thirty), "--name", "thirty", *words)
    assert found["version"] == "1"
    assert places("thirty") == ["large"], "28 GiB fit on the large GPU only"
    cluster.manta("deploy", str(ten), "--name", "ten", "--device", "cuda")
    assert places("ten") == ["small"], (
        "28.5 GiB are more than the smaller GPU, so that the model has the large one for itself"
    )
    refused = cluster.manta("deploy", str(thirty), "--name", "more", "--device", "cuda", code=3)["error"]
    assert refused["code"] == "MEMORY"
    assert "0 of 1 replicas have room" in refused["found"]
    assert f"(pid {os.getpid()})" in refused["found"], "who holds the memory is named"
    assert "28.50 GiB" in refused["rule"]
    rows = tmp_path / "rows.json"
    rows.write_text("[[1, 2, 3, 4]]")
    for name in ("ten", "thirty"):  # what was there is served as before
        assert cluster.manta("predict", name, str(rows))["predictions"] == [{"value": 10.0}]
    cluster.manta("undeploy", "thirty")
    assert cluster.manta("deploy", str(thirty), "--name", "more", "--device", "cuda")["version"] == "1"
