"""Compile fake_nvml.c, so that the probe's and Ray's own code load a `libnvidia-ml.so.1` by ctypes as on a GPU host."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

import pytest

SOURCE = Path(__file__).with_name("fake_nvml.c")


def build(folder: Path) -> Path:
    """The folder that holds the library; skips the test where there is no C compiler."""
    compiler = shutil.which("cc")
    if compiler is None:
        pytest.skip("no C compiler to make the fake NVML with")
    library = folder / "libnvidia-ml.so.1"
    command = [compiler, "-shared", "-fPIC", "-Wall", "-Werror", "-o", str(library), str(SOURCE)]
    subprocess.run(command, check=True, timeout=60)
    return folder


def environment(library: Path, state: Path) -> dict[str, str]:
    """The variables of a process that is to see the GPUs of `state`."""
    paths = [str(library), os.environ.get("LD_LIBRARY_PATH", "")]
    return {"LD_LIBRARY_PATH": ":".join(path for path in paths if path), "FAKE_NVML": str(state)}


def write_gpus(state: Path, *gpus: tuple[str, int, int, list[int]]) -> Path:
    """Write what the library answers: (uuid, total MiB, free MiB, processes) of each GPU."""
    lines = [f"{uuid} {total} {free} {','.join(map(str, pids)) or '-'}" for uuid, total, free, pids in gpus]
    state.write_text("\n".join(lines) + "\n", encoding="ascii")
    return state
