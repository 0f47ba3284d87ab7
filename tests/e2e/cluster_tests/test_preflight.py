"""A taken port and a /dev/shm that is too small are errors before anything is computed, through the real command."""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from tests.e2e.cluster_tests.head import clean_environment

SPEC = """
version: 1
name: tiny
data: {source: {kind: sklearn, dataset: digits}}
train: {epochs: 1}
"""
RUN = [sys.executable, "-c", "from cluster.cli import main; main()", "run", "tiny.yaml"]


def manta_run(folder: Path, *before: str, port: int = 0) -> subprocess.CompletedProcess[str]:
    (folder / "tiny.yaml").write_text(SPEC, encoding="utf-8")
    command = [*before, *RUN, "--set", f"serve.port={port}"]
    return subprocess.run(command, cwd=folder, env=clean_environment(), capture_output=True, text=True, timeout=120)


def test_a_port_in_use_names_its_holder_before_training(tmp_path: Path) -> None:
    with socket.socket() as holder:
        holder.bind(("127.0.0.1", 0))
        holder.listen()
        port = holder.getsockname()[1]
        done = manta_run(tmp_path, port=port)
    assert done.returncode == 3
    assert f"Cannot serve on 127.0.0.1:{port}" in done.stderr
    assert f"(pid {os.getpid()})" in done.stderr
    assert "serve.port" in done.stderr
    assert "Traceback" not in done.stderr
    assert not (tmp_path / "runs" / "tiny" / "stages").exists(), "work was done before the check"


def can_mount() -> bool:
    return (
        bool(shutil.which("unshare")) and subprocess.run(["unshare", "-m", "true"], capture_output=True).returncode == 0
    )


@pytest.mark.skipif(not can_mount(), reason="needs a mount namespace: root on Linux")
def test_a_shared_memory_of_64_mb_is_refused_with_the_remedy(tmp_path: Path) -> None:
    small = 'mount -t tmpfs -o size=64m tmpfs /dev/shm && exec "$@"'  # Docker's default, for real
    done = manta_run(tmp_path, "unshare", "-m", "bash", "-c", small, "bash")
    assert done.returncode == 3
    assert "/dev/shm has 64 MiB free" in done.stderr
    assert "--shm-size" in done.stderr
    assert "Traceback" not in done.stderr
    assert not (tmp_path / "runs" / "tiny" / "stages").exists()
