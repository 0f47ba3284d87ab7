"""The judge's environment (the unmodified tritonclient in a venv of its own) and a server process to judge."""

from __future__ import annotations

import os
import subprocess
import sys
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.bundles import make_bundle, make_echo_bundle

TRITONCLIENT = "tritonclient[http,grpc]==2.73.0"
INSTALL_TIMEOUT_S = 280
START_TIMEOUT_S = 60


def cache_folder() -> Path:
    root = os.environ.get("XDG_CACHE_HOME") or str(Path.home() / ".cache")
    return Path(root) / "manta-tests" / TRITONCLIENT.replace("[", "-").replace("]", "").replace("==", "-")


@pytest.fixture(scope="session")
def triton_python() -> Path:
    """Python with tritonclient, outside the repository: its protobuf pin contradicts ours."""
    folder = cache_folder()
    python = folder / "bin" / "python"
    if not (folder / "complete").exists():
        subprocess.run([sys.executable, "-m", "venv", "--clear", str(folder)], check=True, timeout=INSTALL_TIMEOUT_S)
        command = [str(python), "-m", "pip", "install", "--quiet", TRITONCLIENT]
        done = subprocess.run(command, capture_output=True, text=True, timeout=INSTALL_TIMEOUT_S, check=False)
        if done.returncode:
            why = f"the protocol's judge could not be installed, nothing is judged: {done.stderr.strip()[-300:]}"
            with warnings.catch_warnings():
                warnings.simplefilter("always")
                sys.stderr.write(f"\n{why}\n")
            pytest.skip(why)
        (folder / "complete").touch()
    return python


@contextmanager
def server_process(bundle: Path, *arguments: str) -> Iterator[str]:
    """`python -m serve BUNDLE` on a free port; yields `host:port`."""
    command = [sys.executable, "-m", "serve", str(bundle), "--port", "0", *arguments]
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True, env={**os.environ, "OMP_NUM_THREADS": "1"})
    try:
        yield ready_line(process)
    finally:
        process.terminate()
        process.communicate(timeout=START_TIMEOUT_S)


def ready_line(process: subprocess.Popen[str]) -> str:
    """Read the server's log until it says where it answers."""
    assert process.stderr is not None
    lines = []
    for line in process.stderr:
        lines.append(line)
        if line.startswith("ready: "):
            return line.split("http://", 1)[1].strip()
    raise AssertionError("the server ended: " + "".join(lines))


@pytest.fixture(scope="session")
def echo_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """A model that gives every datatype back."""
    with server_process(make_echo_bundle(tmp_path_factory.mktemp("echo") / "bundle")) as address:
        yield address


@pytest.fixture(scope="session")
def digits_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """A classifier of ten classes."""
    with server_process(make_bundle(tmp_path_factory.mktemp("digits") / "bundle")) as address:
        yield address
