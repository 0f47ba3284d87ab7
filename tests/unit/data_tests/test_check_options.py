"""`manta data check`: each option of the command reaches the code that it names."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

import cluster.cli.data_verbs as verbs
import trainers.data.check as check
from cluster.cli.app import app
from cluster.cli.seam import call
from tests.unit.data_tests.making import write_table


@pytest.fixture
def in_process(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The room's command runs in this process; which way the table was read is noted."""
    ways: list[str] = []

    def noted(name: str) -> None:
        real = getattr(check, name)

        def wrapped(*args: Any, **options: Any) -> Any:
            ways.append(name)
            return real(*args, **options)

        monkeypatch.setattr(check, name, wrapped)

    noted("check_files")
    noted("check_table")
    monkeypatch.setattr(verbs, "run_module", lambda _, arguments: check.main(arguments))
    return ways


@pytest.mark.parametrize(
    ("options", "way"),
    [([], "check_table"), (["--memory-mb", "1"], "check_files"), (["--memory-mb", "64"], "check_table")],
)
def test_the_memory_budget_decides_how_the_table_is_read(
    options: list[str], way: str, in_process: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = write_table(tmp_path / "t.csv", 8000)
    assert path.stat().st_size > 1 << 17  # times eight: more than a MiB
    assert call(app, ["data", "check", str(path), *options, "--json"]) == 0
    assert in_process == [way]
    assert json.loads(capsys.readouterr().out)["rows"] == 8000


def test_the_report_on_ray_data_is_asked_for_by_its_flag(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[list[str]] = []
    monkeypatch.setattr(verbs, "run_module", lambda _, arguments: asked.append(arguments) or 0)
    for options in ([], ["--distributed"]):
        assert call(app, ["data", "check", "t.csv", *options]) == 0
    assert asked == [["t.csv"], ["t.csv", "--distributed"]]


def test_a_budget_below_a_mebibyte_is_a_wrong_command(in_process: list[str], tmp_path: Path) -> None:
    assert call(app, ["data", "check", str(tmp_path / "t.csv"), "--memory-mb", "0"]) == 2
    assert in_process == []


def test_target_test_file_delimiter_and_page_arrive(
    in_process: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for name, seed in (("t.csv", 0), ("other.csv", 1)):
        path = write_table(tmp_path / name, 200, seed=seed)
        path.write_text(path.read_text().replace(",", ";"))
    page = tmp_path / "q.html"
    options = ["--target", "y", "--test", str(tmp_path / "other.csv"), "--delimiter", ";", "--html", str(page)]
    call(app, ["data", "check", str(tmp_path / "t.csv"), *options, "--json"])
    report = json.loads(capsys.readouterr().out)
    assert (list(report["columns"]), page.exists(), in_process) == (
        ["age", "size", "color", "y"],
        True,
        ["check_table"],
    )
    assert call(app, ["data", "check", str(tmp_path / "t.csv"), "--target", "z", "--delimiter", ";"]) == 2
    assert "no column 'z'" in capsys.readouterr().err


ROWS = "name,b,t\n" + "\n".join(f"Müller{i},x{i % 3},{i % 2}" for i in range(50)) + "\n"


@pytest.mark.parametrize("memory_mb", ["1024", "1"])
@pytest.mark.parametrize("encoding", ["cp1252", "utf-16", "utf-16-le"])
def test_the_encoding_that_is_given_is_the_one_that_is_read(
    encoding: str, memory_mb: str, in_process: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "t.csv"
    path.write_bytes(ROWS.encode(encoding))
    arguments = ["data", "check", str(path), "--memory-mb", memory_mb, "--json"]
    assert call(app, [*arguments, "--encoding", encoding]) == 0
    assert "Müller0" in json.loads(capsys.readouterr().out)["columns"]["name"]["most_frequent"]
    assert call(app, arguments) == 2
    told = capsys.readouterr()
    assert {"cp1252": "is not utf-8", "utf-16": "mark of UTF-16", "utf-16-le": "NUL bytes"}[encoding] in (
        told.out + told.err
    )


ODD = {
    "two columns of one name": ("a,a,t\n1,2,3\n4,5,6\n", "column 'a' is there twice"),
    "a name over two lines": ('a,"two\nlines",t\n1,2,3\n', "goes on in the next line"),
}


@pytest.mark.parametrize("case", ODD)
def test_an_odd_header_is_one_sentence(
    case: str, in_process: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    text, words = ODD[case]
    (tmp_path / "t.csv").write_text(text, encoding="utf-8")
    assert call(app, ["data", "check", str(tmp_path / "t.csv")]) == 2
    assert words in capsys.readouterr().err


def test_lines_that_end_with_a_carriage_return_alone_are_lines(
    in_process: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "t.csv").write_bytes(b"a,b,t\r1,x,0\r2,y,1\r")
    call(app, ["data", "check", str(tmp_path / "t.csv"), "--json"])
    found = json.loads(capsys.readouterr().out)
    assert found["rows"] == 2
    assert list(found["columns"]) == ["a", "b", "t"]
