"""What is shipped: ignore files are honored, a needed file that stays behind is an error, equal files equal bytes."""

from __future__ import annotations

import io
import os
import zipfile
from pathlib import Path

import pytest

from cluster.errors import RequestError
from cluster.runtime.jobs import package
from cluster.runtime.jobs.package import IgnoreRules, build_package, files_named_in


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for name in (
        "spec.yaml",
        "data/a.csv",
        "data/b.csv",
        "notes.txt",
        ".git/HEAD",
        "runs/x/weights",
        "m/__pycache__/c.pyc",
    ):
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(name, encoding="utf-8")
    return tmp_path


def test_caches_runs_and_git_stay_behind(folder: Path) -> None:
    assert build_package(folder).files == ("data/a.csv", "data/b.csv", "notes.txt", "spec.yaml")


def test_the_last_ignore_file_wins(folder: Path) -> None:
    (folder / ".gitignore").write_text("# data\n*.csv\n", encoding="utf-8")
    (folder / ".mantaignore").write_text("notes.txt\n!data/b.csv\n", encoding="utf-8")
    assert build_package(folder).files == (".gitignore", ".mantaignore", "data/b.csv", "spec.yaml")


def test_a_needed_file_that_stays_behind_names_the_pattern(folder: Path) -> None:
    (folder / ".gitignore").write_text("*.csv\n", encoding="utf-8")
    with pytest.raises(RequestError) as caught:
        build_package(folder, needed=("data/a.csv",))
    assert "data/a.csv, which the spec needs, stays behind because of '*.csv' in .gitignore" in caught.value.message
    (folder / ".gitignore").write_text("data/\n", encoding="utf-8")
    assert str(IgnoreRules(folder).why_left_behind("data/a.csv")) == "'data/' in .gitignore"


def test_equal_files_make_equal_bytes_whatever_their_times(folder: Path) -> None:
    first = build_package(folder)
    os.utime(folder / "notes.txt", (1, 1))
    assert build_package(folder) == first
    (folder / "notes.txt").write_text("changed", encoding="utf-8")
    assert build_package(folder).name != first.name


def test_the_zip_holds_the_files_and_their_modes(folder: Path) -> None:
    (folder / "notes.txt").chmod(0o755)
    with zipfile.ZipFile(io.BytesIO(build_package(folder).data)) as archive:
        assert archive.read("data/a.csv") == b"data/a.csv"
        assert archive.getinfo("notes.txt").external_attr >> 16 & 0o777 == 0o755


def test_a_package_above_the_limit_names_the_largest_files(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (folder / "huge.bin").write_bytes(os.urandom(1 << 17))
    monkeypatch.setattr(package, "PACKAGE_BYTES_MAX", 1 << 16)
    with pytest.raises(RequestError, match=r"huge\.bin") as caught:
        build_package(folder)
    assert ".mantaignore" in caught.value.message


def test_files_that_a_spec_names_are_found_and_foreign_ones_told(
    folder: Path, tmp_path_factory: pytest.TempPathFactory
) -> None:
    other = tmp_path_factory.mktemp("other") / "far.csv"
    other.write_text("x", encoding="utf-8")
    spec = {"data": {"source": {"path": "data/a.csv", "inputs": "none.npy"}}, "far": str(other), "kind": "csv", "n": 3}
    assert files_named_in(spec, folder) == (("data/a.csv",), (str(other),))
