"""The rules of training have tests that exist, and docs/training.md keys and sections that exist; docs/architecture.md
names functions and files that exist."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any, get_args

import pytest
from pydantic import BaseModel

from cluster.spec.load import parse_spec
from cluster.spec.train import TrainSpec
from docs.training_notes import NOTES
from docs.training_rules import RULES

ROOT = Path(__file__).resolve().parents[2]
KINDS = (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)
TRAINING = (ROOT / "docs" / "training.md").read_text(encoding="utf-8")
WITHOUT_TRAIN = "version: 1\ndata: {source: {kind: sklearn, dataset: digits}}\n"
LINKED = ("training.md", "reference/training-rules.md", "reference/spec.md")


def test_every_rule_of_training_has_tests_that_exist() -> None:
    rules = {rule: tests for topic in RULES.values() for rule, tests in topic.items()}
    assert len(rules) == sum(map(len, RULES.values())), "a rule is there twice"
    assert len(rules) >= 72
    assert sum(len(names) for tests in rules.values() for names in tests.values()) >= 122
    for rule, tests in rules.items():
        assert [name for names in tests.values() for name in names], f"no test: {rule}"
        for file, names in tests.items():
            tree = ast.parse((ROOT / "tests" / file).read_text(encoding="utf-8"))
            found = {node.name for node in ast.walk(tree) if isinstance(node, KINDS[:2])}
            assert [name for name in names if name not in found or not name.startswith("test_")] == [], file


def test_notes_are_on_topics_that_have_rules() -> None:
    assert NOTES.keys() <= RULES.keys()


def test_the_examples_of_the_training_page_are_valid() -> None:
    blocks = re.findall(r"^```yaml\n(.*?)^```", TRAINING, re.MULTILINE | re.DOTALL)
    assert len(blocks) >= 4
    for block in blocks:
        parse_spec(block if block.startswith("version:") else f"{WITHOUT_TRAIN}{block}")


def test_keys_that_the_training_page_names_are_in_the_spec() -> None:
    named = re.findall(r"`train\.((?:\w+\.)*\w+)", TRAINING + "".join(NOTES.values()))
    for path in {*named} - {"loss"}:  # a metric
        section: Any = TrainSpec
        for key in path.split("."):
            assert key in section.model_fields, f"train.{path}"
            section = next(iter(_models(section.model_fields[key].annotation)), None)


def _models(annotation: Any) -> Iterator[type[BaseModel]]:
    """The sections that a field may hold."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        yield annotation
    for part in get_args(annotation):
        yield from _models(part)


def test_links_to_sections_of_the_training_pages_lead_to_headings() -> None:
    pages = {name: (ROOT / "docs" / name).read_text(encoding="utf-8") for name in LINKED}
    anchors = {
        name: {_anchor(line) for line in text.splitlines() if line.startswith("#")} for name, text in pages.items()
    }
    for page in [*(ROOT / "docs").glob("*.md"), *(ROOT / "docs" / "reference").glob("*.md")]:
        for target, anchor in re.findall(r"\]\(([^)#\s]+)#([^)]+)\)", page.read_text(encoding="utf-8")):
            path = (page.parent / target).resolve()
            name = path.relative_to(ROOT / "docs").as_posix() if path.is_relative_to(ROOT / "docs") else ""
            assert name not in anchors or anchor in anchors[name], f"{page.name}: {target}#{anchor}"


def _anchor(heading: str) -> str:
    """As GitHub makes it."""
    return re.sub(r"[^\w\- ]", "", heading.lstrip("#").strip().lower()).replace(" ", "-")


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
