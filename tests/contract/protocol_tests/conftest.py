"""The judge's environment (the unmodified tritonclient in a venv of its own) and a server process to judge."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.bundles import make_bundle, make_echo_bundle
from tests.triton import admin_token_file, triton_python

__all__ = ["triton_python"]

START_TIMEOUT_S = 60


@contextmanager
def server_process(bundle: Path, *arguments: str, grpc: bool = False) -> Iterator[str]:
    """`python -m serve BUNDLE` on a free port; yields `host:port`."""
    command = [sys.executable, "-m", "serve", str(bundle), "--port", "0", *arguments]
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True, env={**os.environ, "OMP_NUM_THREADS": "1"})
    try:
        yield ready_line(process, "grpc://" if grpc else "http://")
    finally:
        process.terminate()
        process.communicate(timeout=START_TIMEOUT_S)


def ready_line(process: subprocess.Popen[str], scheme: str) -> str:
    """Read the server's log until it says where it answers."""
    assert process.stderr is not None
    lines = []
    for line in process.stderr:
        lines.append(line)
        if line.startswith("ready: ") and scheme in line:
            return line.split(scheme, 1)[1].strip()
    raise AssertionError("the server ended: " + "".join(lines))


@pytest.fixture(scope="session")
def echo_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """A model that gives every datatype back."""
    folder = tmp_path_factory.mktemp("echo")
    tokens = ("--admin-token-file", str(admin_token_file(folder)))
    with server_process(make_echo_bundle(folder / "bundle"), *tokens) as address:
        yield address


@pytest.fixture(scope="session")
def digits_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """A classifier of ten classes."""
    with server_process(make_bundle(tmp_path_factory.mktemp("digits") / "bundle")) as address:
        yield address
