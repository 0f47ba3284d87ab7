"""Levels L0 and L1: the names that this project uses are those of TensorRT's real Python bindings, 10 and 11."""

from __future__ import annotations

import ast
import json
from pathlib import Path
from typing import Any

import pytest

from tests.contract.tensorrt_tests.bindings import HERE, ROOT, VERSIONS, run_under_bindings, snapshot, stubs
from tests.unit.export_tests.test_graph_file import write_graph

SOURCES = ("trainers/export/tensorrt.py", "serve/engines/tensorrt.py", "cluster/probe/tensorrt_calls.py")
GONE_IN_11 = ("max_workspace_size", "device_memory_size", "execute_async_v2", "int8_calibrator", "EXPLICIT_BATCH")


def chains(source: Path) -> set[tuple[str, ...]]:
    """`trt.A.B` and `self._trt.A.B` and `calls.trt.A.B` as ("A", "B")."""
    found = set()
    for node in ast.walk(ast.parse(source.read_text(encoding="utf-8"))):
        names: list[str] = []
        inner: ast.AST = node
        while isinstance(inner, ast.Attribute):
            names.insert(0, inner.attr)
            inner = inner.value
        if isinstance(inner, ast.Name):
            names.insert(0, inner.id)
        roots = [i for i, name in enumerate(names) if name in ("trt", "_trt")]
        if roots and names[roots[0] + 1 :]:
            found.add(tuple(names[roots[0] + 1 :]))
    return found


@pytest.mark.tensorrt_level("L0")
@pytest.mark.parametrize("version", VERSIONS)
def test_every_name_of_the_module_that_the_sources_use_is_in_the_snapshot(version: str) -> None:
    api = snapshot(version)
    used = set().union(*(chains(ROOT / source) for source in SOURCES))
    assert ("MemoryPoolType", "WORKSPACE") in used
    assert len(used) > 10
    for first, *rest in used - {("__version__",)}:
        assert first in api["names"], first
        path = f"{first}.{rest[0]}" if rest and f"{first}.{rest[0]}" in api["enums"] else first
        members = api["enums"].get(path) or api["classes"].get(path, {})
        last = rest[-1] if rest else None
        assert last is None or path.endswith(last) or last in members, (first, *rest)


@pytest.mark.tensorrt_level("L0")
def test_the_sources_use_nothing_that_tensorrt_11_took_away() -> None:
    for source in SOURCES:
        text = (ROOT / source).read_text(encoding="utf-8")
        attributes = {node.attr for node in ast.walk(ast.parse(text)) if isinstance(node, ast.Attribute)}
        assert not attributes & set(GONE_IN_11)
    api = snapshot("11.4.0.106")
    assert "EXPLICIT_BATCH" not in api["enums"]["NetworkDefinitionCreationFlag"]
    assert "device_memory_size" not in api["classes"]["ICudaEngine"]
    assert "FP16" not in api["enums"]["BuilderFlag"]


@pytest.fixture(scope="module")
def stub_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("stubs")
    for version in VERSIONS:
        (folder / version).mkdir()
        stubs(version, folder / version)
    return folder


@pytest.mark.tensorrt_level("L1")
@pytest.mark.parametrize("version", VERSIONS)
def test_the_snapshot_is_what_the_real_bindings_bind(version: str, stub_folder: Path) -> None:
    found = json.loads(run_under_bindings(version, stub_folder / version, [str(HERE / "describe.py")]))
    assert found == snapshot(version)


@pytest.mark.tensorrt_level("L1")
@pytest.mark.parametrize("version", VERSIONS)
def test_our_calls_run_on_the_real_bindings_up_to_the_first_factory(
    version: str, stub_folder: Path, tmp_path: Path
) -> None:
    write_graph(tmp_path / "m.onnx")
    output = run_under_bindings(version, stub_folder / version, [str(HERE / "real.py"), str(tmp_path / "m.onnx")])
    found: dict[str, Any] = json.loads(output)
    assert found["loads"]
    assert found["logger_is_real"]
    assert found["recorder_is_real"]
    assert found["lines"] == ["INTERNAL_ERROR", "ERROR", "WARNING"]
    assert found["recorded"] == [8, "ErrorCodeTRT.INVALID_CONFIG", False]
    assert found["network_flags"] == (0 if version.startswith("11") else 2)
    for call in ("Builder", "Runtime"):
        told = found[call.lower()]
        assert told.startswith("ModelError: Cannot use TensorRT")
        assert f"{call} failed" in told
        assert "no memory" in told
        assert "the driver is old" in told
    assert found["build"].startswith("ModelError: Cannot build an engine of m.onnx")
    assert "incompatible constructor arguments" in found["wrong_type"]
    assert found["gone"].startswith("AttributeError")
    assert found["dims"] == [[1, 2], "DataType.FLOAT", 2]
    assert "because" in found["need"]
