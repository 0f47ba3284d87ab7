"""Private names of Ray are used in cluster/runtime/ray_private.py alone."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator

import pytest

from tests.meta.test_laws import ROOMS, ROOT

RAY_PRIVATE = "cluster/runtime/ray_private.py"
INTERNAL = ("ray.core.generated", "ray.experimental", "ray.air.execution", "ray.train.v2")
"""Modules that Ray documents nowhere, without an underscore."""
IMPORTS_RAY = re.compile(r"^\s*(?:from|import) ray\b", re.MULTILINE)


def private_uses(source: str) -> list[str]:
    """Private names of Ray in a module: imported, taken from an object, or given as a keyword."""
    if not IMPORTS_RAY.search(source):
        return []
    tree = ast.parse(source)
    found = list(_private_imports(tree))
    own = {node.attr for node in ast.walk(tree) if isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Store)}
    own |= {node.name for node in ast.walk(tree) if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)}
    own |= {ast.unparse(node.target) for node in ast.walk(tree) if isinstance(node, ast.AnnAssign)}
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute) and _is_private(node.attr):
            is_own = ast.unparse(node.value) in ("self", "cls") and node.attr in own
            found += [] if is_own else [f"line {node.lineno}: {ast.unparse(node)}"]
        elif isinstance(node, ast.keyword) and _is_private(node.arg or ""):
            found.append(f"line {node.lineno}: {node.arg}=")
    return found


def _imported(tree: ast.AST) -> Iterator[str]:
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def _private_imports(tree: ast.AST) -> Iterator[str]:
    for name in _imported(tree):
        is_internal = any(name == module or name.startswith(f"{module}.") for module in INTERNAL)
        if name.split(".")[0] == "ray" and (is_internal or any(_is_private(part) for part in name.split("."))):
            yield f"import {name}"


def _is_private(name: str) -> bool:
    return name.startswith("_") and not name.endswith("__")


def test_private_names_of_ray_are_in_one_file() -> None:
    files = [path for room in ROOMS for path in (ROOT / room).rglob("*.py")]
    found = {
        path.relative_to(ROOT).as_posix(): uses
        for path in files
        if (uses := private_uses(path.read_text(encoding="utf-8")))
    }
    assert list(found) == [RAY_PRIVATE], f"give {RAY_PRIVATE} a function for it: {found}"


@pytest.mark.parametrize(
    "source",
    [
        "from ray._private import state",
        "import ray.serve._private.constants",
        "from ray.train.v2.api.config import FailureConfig",
        "from ray.serve.context import _get_global_client",
        "import ray\nray._raylet",
        "from ray import serve\nserve.delete('x', _blocking=False)",
        "from ray.tune import Scheduler\nclass Mine(Scheduler):\n    def f(self):\n        return self._brackets",
    ],
)
def test_a_private_name_is_found(source: str) -> None:
    assert private_uses(source) != []


def test_names_of_our_own_are_not_private_names_of_ray() -> None:
    assert (
        private_uses("import ray\nclass A:\n    def __init__(self):\n        self._b = ray.nodes()\n        self._b")
        == []
    )


def test_loading_the_file_loads_nothing_of_ray() -> None:
    body = ast.parse((ROOT / RAY_PRIVATE).read_text(encoding="utf-8")).body
    top = ast.Module([node for node in body if isinstance(node, ast.Import | ast.ImportFrom)], [])
    assert not any(name.split(".")[0] == "ray" for name in _imported(top))
