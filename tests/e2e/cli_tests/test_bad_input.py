"""A user's mistake ends in one clear sentence and exit code 2, without a traceback and before anything is started."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from tests.e2e.conftest import Done

Manta = Callable[..., Done]
HEAD = "version: 1\nserve: null\nsearch: null\n"


def csv_spec(target: str = "y", path: str = "rows.csv") -> str:
    return f"{HEAD}data: {{source: {{kind: csv, path: {path}}}, target: {target}}}\n"


def rows(count: int = 60, classes: int = 2) -> str:
    return "a,b,y\n" + "".join(f"{i},{i * 2},{i % classes}\n" for i in range(count))


def fails(done: Done, code: int, *words: str) -> None:
    assert done.code == code, done.stderr
    assert "Traceback" not in done.stderr
    for word in words:
        assert word in done.stderr


def write(folder: Path, name: str, content: str | bytes) -> None:
    data = content.encode() if isinstance(content, str) else content
    (folder / name).write_bytes(data)


@pytest.mark.parametrize(
    ("spec", "words"),
    [
        ("version: 2\ndata: {source: {kind: sklearn, dataset: digits}}\n", ["version: must be 1"]),
        (
            "version: 1\ndata: {sorce: {}}\n",
            ["data.sorce: unknown key; did you mean data.source?", "data.source: this"],
        ),
        ("version: 1\ndata: {source: {kind: sklearn, dataset: digits}}\ntrain: {epochs: many}\n", ["train.epochs"]),
        ("", ["empty"]),
        ("a: [", ["YAML"]),
    ],
)
def test_wrong_specs(manta: Manta, tmp_path: Path, spec: str, words: list[str]) -> None:
    write(tmp_path, "spec.yaml", spec)
    fails(manta("check", "spec.yaml"), 2, *words)
    fails(manta("run", "spec.yaml"), 2, *words)
    assert not (tmp_path / "runs").exists()


def test_missing_spec(manta: Manta) -> None:
    fails(manta("run", "none.yaml"), 2, "no such file")


@pytest.mark.parametrize(
    ("content", "target", "words"),
    [
        (rows(), "z", ["no column 'z'", "a, b, y"]),
        ("a,b,y\n" + "".join(f"{i},{i * i},0\n" for i in range(50)), "y", ["all 50 rows have the value"]),
        ("a,y\n" + "".join(f"{i},c{i}\n" for i in range(50)), "y", ["50"]),
        ("a,y\n", "y", ["zero rows"]),
        ("", "y", ["empty"]),
        (b"\x00\xff\x00\x01" * 50, "y", ["binary"]),
        (rows().replace("7,14", "7,inf"), "y", ["infinite"]),
    ],
)
def test_wrong_tables(manta: Manta, tmp_path: Path, content: str | bytes, target: str, words: list[str]) -> None:
    write(tmp_path, "rows.csv", content)
    write(tmp_path, "spec.yaml", csv_spec(target))
    fails(manta("run", "spec.yaml", "--until", "prepare"), 2, *words)


def test_source_that_is_missing_or_a_directory(manta: Manta, tmp_path: Path) -> None:
    write(tmp_path, "spec.yaml", csv_spec())
    fails(manta("run", "spec.yaml"), 2, "rows.csv", "no such file")
    (tmp_path / "rows.csv").mkdir()
    fails(manta("run", "spec.yaml"), 2, "directory")


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read everything")
def test_source_without_permission(manta: Manta, tmp_path: Path) -> None:
    write(tmp_path, "rows.csv", rows())
    (tmp_path / "rows.csv").chmod(0)
    write(tmp_path, "spec.yaml", csv_spec())
    fails(manta("run", "spec.yaml"), 2, "permission")


def test_images_and_labels_of_different_counts(manta: Manta, tmp_path: Path) -> None:
    np.savez(tmp_path / "a.npz", images=np.zeros((20, 8, 8), np.uint8), labels=np.arange(19) % 2)
    write(
        tmp_path,
        "spec.yaml",
        f"{HEAD}data: {{source: {{kind: numpy, inputs: 'a.npz:images', targets: 'a.npz:labels'}}}}\n",
    )
    fails(manta("run", "spec.yaml", "--until", "prepare"), 2, "20", "19")


def test_a_damaged_bundle(manta: Manta, tmp_path: Path) -> None:
    fails(manta("bundle", "verify", "none"), 2, "no such folder")


def test_debug_shows_the_traceback(manta: Manta) -> None:
    done = manta("run", "none.yaml", "--debug")
    assert done.code == 2
    assert "Traceback" in done.stderr


def test_json_errors_are_one_object_on_stdout(manta: Manta) -> None:
    done = manta("run", "none.yaml", "--json")
    assert done.code == 2
    assert done.json["ok"] is False
    assert done.json["error"]["code"] == "SPEC"


def test_unknown_run_and_unknown_option(manta: Manta) -> None:
    fails(manta("show", "none"), 2, "no such run")
    fails(manta("run", "--nope"), 2, "--nope", "--help")
    fails(manta("run"), 2, "SPEC")
    fails(manta("nope"), 2, "nope")
    fails(manta("run", "x.yaml", "--until", "lunch"), 2, "lunch", "prepare")
