"""One run over two hosts: network and PID namespaces on this machine. Needs root and Linux; else it is skipped."""

from __future__ import annotations

import json
import secrets
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from cluster.runtime.environment import CLUSTER_ENVIRONMENT, with_ray_environment
from tests.e2e.cluster_tests.head import clean_environment

SCRIPT = Path(__file__).with_name("two_hosts.sh")
SPEC = """
version: 1
name: tiny
data: {source: {kind: sklearn, dataset: digits}}
model: {family: mlp}
train: {epochs: 2, workers: 2, batch_size_global: 64}
search: null
compress: null
serve: null
"""
PERIOD_S, TIMEOUT_S, THRESHOLD = 2.0, 3.0, 5  # CLUSTER_ENVIRONMENT, and Ray's own failure threshold


def can_make_namespaces() -> bool:
    tools = all(shutil.which(tool) for tool in ("unshare", "ip"))
    return tools and subprocess.run(["unshare", "-m", "-p", "-n", "-f", "true"], capture_output=True).returncode == 0


@pytest.fixture
def ray_folder() -> Iterator[str]:
    folder = tempfile.mkdtemp(prefix="m2-", dir="/tmp")
    yield folder
    shutil.rmtree(folder, ignore_errors=True)


@pytest.mark.slow
@pytest.mark.timeout(600)
@pytest.mark.skipif(not can_make_namespaces(), reason="needs root and Linux namespaces")
def test_one_run_over_two_hosts_and_a_silent_host_is_dead_in_25_s(tmp_path: Path, ray_folder: str) -> None:
    for folder in (tmp_path, tmp_path / "project"):
        folder.mkdir(exist_ok=True)
        (folder / "tiny.yaml").write_text(SPEC, encoding="utf-8")
    home = tmp_path / "home"
    home.mkdir()
    own = {"RAY_AUTH_TOKEN": secrets.token_hex(32), "HOME": str(home), "RAY_FOLDER": ray_folder}
    environment = with_ray_environment({**CLUSTER_ENVIRONMENT, **clean_environment(), **own})
    environment["PYTHONPATH"] = str(Path(__file__).parents[3])
    outer = ["unshare", "-m", "-p", "-n", "-f", "--kill-child", "bash", str(SCRIPT), str(tmp_path)]
    command = [sys.executable, "-m", "tests.e2e.cluster_tests.on_host_1", str(tmp_path), "tiny.yaml"]
    done = subprocess.run([*outer, *command], env=environment, capture_output=True, text=True, timeout=570)
    assert done.returncode == 0, done.stderr
    facts = json.loads((tmp_path / "facts.json").read_text(encoding="utf-8"))
    assert set(facts["probed"]) == {"10.9.0.1", "10.9.0.2"}
    # each host has one CPU and each of the two workers takes one: the run cannot have stayed on one host
    assert facts["run"]["code"] == 0, facts["run"]["stderr"]
    record = json.loads((tmp_path / "runs" / "tiny" / "stages" / "train" / "record.json").read_text(encoding="utf-8"))
    assert record["facts"]["best_epoch"] >= 1
    assert facts["blind"]["code"] == 3, facts["blind"]
    assert "10.9.0.2 does not see what this host has written there" in facts["blind"]["stderr"]
    assert facts["silent_node_dead_after_s"] < THRESHOLD * (PERIOD_S + TIMEOUT_S) + 10
    assert facts["submitted"]["code"] == 0, (
        facts["submitted"],
        (tmp_path / "runs/shipped/run.log").read_text()[-4000:],
    )
    assert (tmp_path / "runs" / "shipped" / "bundle" / "manifest.json").is_file()
    assert facts["log"]["code"] == 0, facts["log"]
