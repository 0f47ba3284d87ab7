"""docs/training.md names tests that exist for its rules; docs/architecture.md functions and files that exist."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
KINDS = (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)
SHORT = {"loop": "unit/loop_tests", "ray": "integration/train_tests", "unit": "unit"}


def test_every_rule_of_the_training_page_has_its_test() -> None:
    page = (ROOT / "docs" / "training.md").read_text(encoding="utf-8")
    table = page.partition("## Rules and their tests")[2].partition("\n## ")[0]
    rows = [line for line in table.splitlines() if line.startswith("| ") and "---" not in line][1:]
    assert len(rows) > 30
    for row in rows:
        named = re.findall(r"`([^`]+?)::(\w+)`", row)
        assert named, f"no test: {row}"
        for file, test in named:
            folder, _, rest = file.partition("/")
            text = (ROOT / "tests" / SHORT[folder] / rest).read_text(encoding="utf-8")
            assert f"def {test}(" in text, f"{file} has no {test}"


@pytest.mark.parametrize("path", ["One update", "One request"])
def test_the_path_of_an_update_and_of_a_request_names_functions_that_exist(path: str) -> None:
    page = (ROOT / "docs" / "architecture.md").read_text(encoding="utf-8")
    named = re.findall(r"`([\w/]+\.py)::([\w.]+)`", page.partition(f"## {path}\n")[2].partition("\n## ")[0])
    assert len(named) > 8
    for file, name in named:
        body: list[ast.stmt] = ast.parse((ROOT / file).read_text(encoding="utf-8")).body
        for part in name.split("."):
            found = [node for node in body if isinstance(node, KINDS) and node.name == part]
            assert found, f"{file} has no {name}"
            body = found[0].body


def test_each_recipe_names_the_files_of_an_example_that_is_there() -> None:
    page = (ROOT / "docs" / "architecture.md").read_text(encoding="utf-8")
    table = page.partition("## Recipes\n")[2].partition("\n## ")[0]
    rows = [line.split(" | ") for line in table.splitlines() if line.startswith("| ") and "---" not in line][1:]
    assert len(rows) >= 8
    for what, example, files in rows:
        named = re.findall(r"`([\w/]+\.\w+)`", files)
        assert len(named) >= 3, f"{what}: {named}"
        without = [file for file in named if example.strip("` ") not in (ROOT / file).read_text(encoding="utf-8")]
        assert not without, f"{what}: no {example} in {without}"
