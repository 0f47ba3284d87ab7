"""Prose that names a file of ours names one that is there: docstrings and comments of modules, and the pages."""

from __future__ import annotations

import ast
import io
import re
import subprocess
import tokenize
from pathlib import Path

import pytest

from tests.meta.test_laws import ROOT

NAMED = re.compile(r"(?<![\w./{}*<>-])((?:[\w-]+/)*[\w-]+\.(?:py|sh))(?![\w*])")
FOLDERS = ("cluster", "trainers", "serve", "tests", "docs", "benchmarks", "docker", "configs")


def lost_names(path: Path, text: str, folders: set[str]) -> list[str]:
    """Files that a module's prose, or a page, names and that are not there; those of other projects are not asked.

    A name counts from the root, from the module's folder or from one above. `folders`: the names of all of ours.
    """
    above = [folder for folder in path.parents if folder.is_relative_to(ROOT)]

    def is_lost(name: str) -> bool:
        first, _, rest = name.partition("/")
        if path.suffix == ".md":  # a page names files of a user's too, and shortens ours
            return first in FOLDERS and not (ROOT / name).is_file()
        return (not rest or first in folders) and not any((folder / name).is_file() for folder in above)

    if path.suffix == ".md" or not any(is_lost(name) for name in NAMED.findall(text)):  # most need no parser
        return [name for name in NAMED.findall(text) if is_lost(name)]
    prose = [
        token.string for token in tokenize.generate_tokens(io.StringIO(text).readline) if token.type == tokenize.COMMENT
    ]
    prose += [
        node.value.value
        for node in ast.walk(ast.parse(text))
        if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant) and isinstance(node.value.value, str)
    ]
    return [name for piece in prose for name in NAMED.findall(piece) if is_lost(name)]


def test_files_that_prose_names_are_there() -> None:
    command = ["git", "ls-files", "--cached", "--others", "--exclude-standard"]
    listed = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, check=True).stdout.splitlines()
    folders = {part for name in listed for part in Path(name).parts[:-1]}
    paths = [ROOT / name for name in listed if name.endswith((".py", ".md")) and name != "CHANGELOG.md"]
    lost = {
        path.relative_to(ROOT).as_posix(): names
        for path in paths
        if path.is_file() and (names := lost_names(path, path.read_text(encoding="utf-8"), folders))
    }
    assert lost == {}


@pytest.mark.parametrize(
    ("text", "lost"),
    [
        ('"""See (cluster/errors.py), app.py, cli/gone.py and ray/tune/gone.py."""', ["cli/gone.py"]),
        ("x = 1  # as gone.py does", ["gone.py"]),
        ("x = 'gone.py'", []),
    ],
)
def test_a_name_in_prose_is_found(text: str, lost: list[str]) -> None:
    assert lost_names(ROOT / "cluster/cli/app.py", text, {"cluster", "cli"}) == lost
