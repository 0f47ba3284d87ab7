"""The protocol's judge: the unmodified tritonclient in a virtual environment outside the repository.

Its protobuf pin contradicts ours, and its messages have the names of ours, so it runs in a process of its own.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

TRITONCLIENT = "tritonclient[http,grpc]==2.73.0"
INSTALL_TIMEOUT_S = 280
TIMEOUT_S = 120
ADMIN_TOKEN = "a-token-for-tests-only"
HTTP_JUDGE = Path(__file__).parent / "contract" / "protocol_tests" / "triton_http_judge.py"
GRPC_JUDGE = HTTP_JUDGE.with_name("triton_grpc_judge.py")


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
            sys.stderr.write(f"\n{why}\n")
            pytest.skip(why)
        (folder / "complete").touch()
    return python


def judge(python: Path, script: Path, *arguments: str) -> dict[str, Any]:
    """What the judge saw. Its own Python, so that nothing of this project's environment is in it."""
    command = [str(python), "-I", str(script), *arguments]
    done = subprocess.run(command, capture_output=True, text=True, timeout=TIMEOUT_S, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    found: dict[str, Any] = json.loads(done.stdout)
    return found


def admin_token_file(folder: Path) -> Path:
    """A file with the token that the judge loads and unloads with."""
    path = folder / "admin-tokens"
    path.write_text(f"# for tests\n{ADMIN_TOKEN}\n")
    return path
