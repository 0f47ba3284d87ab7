"""The working folder as one zip file for a Ray job: which files go along, and why a file stays behind.

Rules are those of .gitignore; the folder's `.gitignore`, `.rayignore` and `.mantaignore` are read in this order and
the last pattern that matches decides, so that `!data/train.csv` in `.mantaignore` brings a file back.

Invariant: the same files make the same bytes and the same name on every machine; a file that the spec names and that
would stay behind is an error that names the pattern, not a surprise on the cluster.

Covered: selection, size limit, deterministic zip. Not covered: ignore files in subfolders other than .gitignore's.
"""

from __future__ import annotations

import hashlib
import io
import os
import zipfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pathspec

from cluster.errors import RequestError

IGNORE_FILES = (".gitignore", ".rayignore", ".mantaignore")
DEFAULT_PATTERNS = (  # the first five are Ray's own (ray/_private/ray_constants.py); the rest is never an input
    *(".git", ".venv", "venv", "__pycache__", "*.pyc"),
    *("runs/", "node_modules", ".mypy_cache", ".ruff_cache", ".pytest_cache", "*.egg-info"),
)
PACKAGE_BYTES_MAX = 100 << 20  # the dashboard refuses a larger body (DASHBOARD_CLIENT_MAX_SIZE)
ZIP_TIME = (1980, 1, 1, 0, 0, 0)  # a fixed time, so that equal files make equal bytes


@dataclass(frozen=True)
class Rule:
    """One pattern and where it stands."""

    pattern: str
    origin: str

    def __str__(self) -> str:
        return f"'{self.pattern}' in {self.origin}"


@dataclass(frozen=True)
class Package:
    """A zip file ready to upload."""

    name: str
    data: bytes
    files: tuple[str, ...]


class IgnoreRules:
    """Which of a folder's files stay behind."""

    def __init__(self, folder: Path) -> None:
        self._rules = [Rule(pattern, "the default rules") for pattern in DEFAULT_PATTERNS]
        for name in IGNORE_FILES:
            path = folder / name
            if path.is_file():
                lines = path.read_text(encoding="utf-8").splitlines()
                self._rules += [Rule(line.strip(), name) for line in lines if line.strip() and line[0] != "#"]
        self._spec = pathspec.GitIgnoreSpec.from_lines(rule.pattern for rule in self._rules)

    def excluded_by(self, relative: str) -> Rule | None:
        """The rule that leaves a file (or, with a trailing slash, a folder) behind; None for what goes along."""
        result = self._spec.check_file(relative)
        return self._rules[result.index] if result.include and result.index is not None else None

    def why_left_behind(self, relative: str) -> Rule | None:
        """As `excluded_by`, also through a folder above the file."""
        parts = relative.split("/")
        above = ("/".join(parts[:depth]) + "/" for depth in range(1, len(parts)))
        return next((rule for path in (*above, relative) if (rule := self.excluded_by(path))), None)


def build_package(folder: Path, *, needed: tuple[str, ...] = ()) -> Package:
    """Zip the folder. `needed` are relative paths that must go along. Raises RequestError."""
    rules = IgnoreRules(folder)
    for relative in needed:
        if rule := rules.why_left_behind(relative):
            raise RequestError(
                f"Cannot ship {folder}",
                found=f"{relative}, which the spec needs, stays behind because of {rule}",
                rule="ignore files decide what goes to the cluster; the last matching pattern wins",
                remedy=f"Add the line '!{relative}' to .mantaignore (and '!' lines for ignored folders above it).",
            )
    files = tuple(sorted(_walk(folder, rules)))
    data = _zip(folder, files)
    if len(data) > PACKAGE_BYTES_MAX:
        raise _too_large(folder, files, len(data))
    return Package(f"_ray_pkg_{hashlib.sha256(data).hexdigest()[:32]}.zip", data, files)


def files_named_in(value: Any, folder: Path) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Texts of a spec that name existing files: those inside `folder` (relative to it), and those outside."""
    inside: list[str] = []
    outside: list[str] = []
    for text in _texts(value):
        path = Path(text.rpartition(":")[0] if text.rpartition(":")[0].endswith(".npz") else text)
        if not text or len(text) > 1024 or not (folder / path).exists() or (folder / path) == folder:
            continue
        resolved = (folder / path).resolve()
        if resolved.is_relative_to(folder.resolve()) and not path.is_absolute():
            relative = resolved.relative_to(folder.resolve())
            inside += [relative.as_posix()] if resolved.is_file() else _files_below(folder, relative)
        elif path.is_absolute() or ".." in path.parts:
            outside.append(text)
    return tuple(dict.fromkeys(inside)), tuple(dict.fromkeys(outside))


def _files_below(folder: Path, relative: Path) -> list[str]:
    below = sorted(path for path in (folder / relative).rglob("*") if path.is_file())
    return [path.relative_to(folder).as_posix() for path in below[:1]]  # one file stands for its folder


def _texts(value: Any) -> Iterator[str]:
    if isinstance(value, str):
        yield value
    elif isinstance(value, dict):
        for item in value.values():
            yield from _texts(item)
    elif isinstance(value, list | tuple):
        for item in value:
            yield from _texts(item)


def _walk(folder: Path, rules: IgnoreRules) -> Iterator[str]:
    """Files that go along. An excluded folder is not entered."""
    for current, folders, names in os.walk(folder):
        base = Path(current).relative_to(folder)
        folders[:] = [name for name in folders if not rules.excluded_by(f"{(base / name).as_posix()}/")]
        for name in names:
            relative = (base / name).as_posix()
            if (Path(current) / name).is_file() and not rules.excluded_by(relative):
                yield relative


def _zip(folder: Path, files: tuple[str, ...]) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as archive:
        for relative in files:
            path = folder / relative
            entry = zipfile.ZipInfo(relative, ZIP_TIME)
            entry.compress_type = zipfile.ZIP_DEFLATED
            entry.external_attr = (path.stat().st_mode & 0o777 | 0o100000) << 16
            archive.writestr(entry, path.read_bytes())
    return buffer.getvalue()


def _too_large(folder: Path, files: tuple[str, ...], size: int) -> RequestError:
    largest = sorted(files, key=lambda name: (folder / name).stat().st_size, reverse=True)[:3]
    shown = ", ".join(f"{name} ({(folder / name).stat().st_size / 2**20:.0f} MiB)" for name in largest)
    return RequestError(
        f"Cannot ship {folder}",
        found=f"its {len(files)} files make a package of {size / 2**20:.0f} MiB; the largest are {shown}",
        rule=f"a job's package may have {PACKAGE_BYTES_MAX >> 20} MiB",
        remedy="List what the run does not need in .mantaignore, and put large data where every node can read it.",
    )
