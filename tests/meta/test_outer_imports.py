"""Benchmarks, documentation scripts and images import names of ours that exist, also inside functions.

Nothing else runs these files, and types are checked in the packages alone.
"""

from __future__ import annotations

import ast
import importlib
import importlib.util
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
OURS = ("cluster", "trainers", "serve", "tests", "benchmarks", "docs")
FILES = sorted(path for folder in ("benchmarks", "docs", "docker") for path in (ROOT / folder).rglob("*.py"))


def imported_names(tree: ast.Module) -> Iterator[tuple[str, str | None]]:
    """(module, name) of each import of ours; the name is None where the module itself is imported."""
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and node.module and not node.level:
            yield from ((node.module, alias.name) for alias in node.names)
        elif isinstance(node, ast.Import):
            yield from ((alias.name, None) for alias in node.names)


def is_there(module: str, name: str | None) -> bool:
    try:
        found = importlib.import_module(module)
    except ModuleNotFoundError as error:
        if (error.name or "").split(".")[0] in OURS:
            return False
        pytest.skip(f"{module} needs {error.name}")
    if name is None or hasattr(found, name):
        return True
    return hasattr(found, "__path__") and importlib.util.find_spec(f"{module}.{name}") is not None


@pytest.mark.parametrize("path", FILES, ids=[str(path.relative_to(ROOT)) for path in FILES])
def test_what_a_script_imports_from_the_packages_exists(path: Path) -> None:
    names = imported_names(ast.parse(path.read_text(encoding="utf-8")))
    ours = [(module, name) for module, name in names if module.split(".")[0] in OURS]
    assert [f"{module}.{name}" for module, name in ours if not is_there(module, name)] == []
