"""What the two-host test does on host 1: wait for two nodes, probe, train over both, and see a partition."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from pathlib import Path

import ray

from cluster.probe import read_host
from cluster.runtime.nodes.tasks import on_every_node
from cluster.runtime.session import ray_session

ADDRESS = "10.9.0.1:6379"
JOIN_S = 120.0
DEAD_S = 90.0
JOBS = "http://10.9.0.1:8265"


def main() -> None:
    folder, spec = Path(sys.argv[1]), sys.argv[2]
    facts: dict[str, object] = {}
    with ray_session(ADDRESS):
        wait_for_nodes(2, JOIN_S)
        facts["probed"] = {result.address: result.value.cpu_cores for result in on_every_node(read_host)}
    facts["run"] = manta(folder, "run", spec, "--until", "train", "--json", "--address", ADDRESS)
    blind = ("--runs-dir", str(folder / "blind"))
    facts["blind"] = manta(folder, "run", spec, "--until", "train", *blind, "--address", ADDRESS)
    shipped = ("--name", "shipped", "--runs-dir", str(folder / "runs"), "--id", "shipped-1", "--json")
    facts["submitted"] = manta(folder / "project", "submit", spec, *shipped, "--address", JOBS)
    facts["log"] = manta(folder, "logs", "shipped-1", "--driver", "--address", JOBS)
    with ray_session(ADDRESS):
        (folder / "cut").touch()
        start = time.monotonic()
        wait_for_nodes(1, DEAD_S)
        facts["silent_node_dead_after_s"] = time.monotonic() - start
    (folder / "facts.json").write_text(json.dumps(facts), encoding="utf-8")


def manta(folder: Path, *words: str) -> dict[str, object]:
    command = [sys.executable, "-c", "from cluster.cli import main; main()", *words]
    done = subprocess.run(command, capture_output=True, text=True, cwd=folder)
    return {"code": done.returncode, "stdout": done.stdout[-4000:], "stderr": done.stderr[-4000:]}


def wait_for_nodes(count: int, seconds: float) -> None:
    deadline = time.monotonic() + seconds
    while sum(node["Alive"] for node in ray.nodes()) != count:
        assert time.monotonic() < deadline, ray.nodes()
        time.sleep(0.2)


if __name__ == "__main__":
    main()
