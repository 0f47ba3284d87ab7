"""`manta data check`: each option of the command reaches the code that it names."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

import trainers.data.check as check
from cluster.cli.app import call
from cluster.spec.data import CsvSource
from cluster.spec.load import load_spec
from tests.unit.data_tests.making import write_table
from trainers.data.read.sources import read_source


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
    monkeypatch.setattr("cluster.cli.forward.run_module", lambda _, arguments: check.main(arguments))
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
    assert call(["data", "check", str(path), *options, "--json"]) == 0
    assert in_process == [way]
    assert json.loads(capsys.readouterr().out)["rows"] == 8000


def test_the_report_on_ray_data_is_asked_for_by_its_flag(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[list[str]] = []
    monkeypatch.setattr("cluster.cli.forward.run_module", lambda _, arguments: asked.append(arguments) or 0)
    for options in ([], ["--distributed"]):
        assert call(["data", "check", "t.csv", *options]) == 0
    assert asked == [["t.csv"], ["t.csv", "--distributed"]]


def test_a_budget_below_a_mebibyte_is_a_wrong_command(in_process: list[str], tmp_path: Path) -> None:
    assert call(["data", "check", str(tmp_path / "t.csv"), "--memory-mb", "0"]) == 2
    assert in_process == []


def test_target_test_file_delimiter_and_page_arrive(
    in_process: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for name, seed in (("t.csv", 0), ("other.csv", 1)):
        path = write_table(tmp_path / name, 200, seed=seed)
        path.write_text(path.read_text().replace(",", ";"))
    page = tmp_path / "q.html"
    options = ["--target", "y", "--test", str(tmp_path / "other.csv"), "--delimiter", ";", "--html", str(page)]
    call(["data", "check", str(tmp_path / "t.csv"), *options, "--json"])
    report = json.loads(capsys.readouterr().out)
    assert (list(report["columns"]), page.exists(), in_process) == (
        ["age", "size", "color", "y"],
        True,
        ["check_table"],
    )
    assert call(["data", "check", str(tmp_path / "t.csv"), "--target", "z", "--delimiter", ";"]) == 2
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
    assert call([*arguments, "--encoding", encoding]) == 0
    assert "Müller0" in json.loads(capsys.readouterr().out)["columns"]["name"]["most_frequent"]
    assert call(arguments) == 2
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
    assert call(["data", "check", str(tmp_path / "t.csv")]) == 2
    assert words in capsys.readouterr().err


def test_lines_that_end_with_a_carriage_return_alone_are_lines(
    in_process: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "t.csv").write_bytes(b"a,b,t\r1,x,0\r2,y,1\r")
    call(["data", "check", str(tmp_path / "t.csv"), "--json"])
    found = json.loads(capsys.readouterr().out)
    assert found["rows"] == 2
    assert list(found["columns"]) == ["a", "b", "t"]


ODD_FILE = "Sizes of 2024\n" + "".join(f"{n % 9},{n % 7}5;{'ab'[n % 2]};{['yes', 'no'][n % 2]}\n" for n in range(90))
ODD_FILE += "Total;;90\n"


@pytest.mark.parametrize("memory_mb", ["1024", "1"])
@pytest.mark.parametrize("target", [[], ["--target", "column_3"]])
def test_the_spec_that_is_written_reads_the_file_as_the_report_did(
    target: list[str], memory_mb: str, in_process: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path, spec = tmp_path / "t.csv", tmp_path / "spec.yaml"
    path.write_text(ODD_FILE)
    options = ["--memory-mb", memory_mb, "--write", str(spec), *target]
    call(["data", "check", str(path), *options, "--json"])
    report = json.loads(capsys.readouterr().out)
    assert report["rows"] == 90
    assert {name: facts["kind"] for name, facts in report["columns"].items()} == {
        "column_1": "number", "column_2": "text", "column_3": "text"}  # fmt: skip
    assert report["columns"]["column_1"]["max"] == 8.65
    assert report["reading"]["delimiter"] == {"value": ";", "reason": "most lines have 3 fields with a semicolon"}
    assert ("no --target was given" in spec.read_text()) == (not target)
    loaded = load_spec(spec)
    source = loaded.data.source
    assert isinstance(source, CsvSource)
    assert (source.delimiter, source.header, source.decimal, source.skip_lines, source.skip_last_lines) == (
        ";", False, ",", 1, 1)  # fmt: skip
    raw = read_source(loaded.data)
    assert (len(raw.rows), loaded.data.target, sorted(raw.rows.target.words)) == (90, "column_3", ["no", "yes"])
    call(["data", "check", str(path)])
    assert "reading  data.source.header is False: '0,05' is a number, as those below it" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("options", "columns"),
    [
        (["--header", "true"], ["anna", "berlin"]),
        (["--header", "false"], ["column_1", "column_2"]),
        (["--header", "false", "--names", "who, where"], ["who", "where"]),
        (["--header", "true", "--skip-lines", "1"], ["bob", "rome"]),
        (["--header", "true", "--comment", "an", "--skip-last-lines", "1"], ["bob", "rome"]),
    ],
)
def test_what_cannot_be_told_is_said_by_options(
    options: list[str], columns: list[str], in_process: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "t.csv"
    path.write_text("anna,berlin\nbob,rome\ncarl,oslo\ndora,paris\n")
    assert call(["data", "check", str(path), "--write", str(tmp_path / "s.yaml")]) == 2
    assert "--header true or false" in capsys.readouterr().err
    assert not (tmp_path / "s.yaml").exists()
    call(["data", "check", str(path), *options, "--json"])
    report = json.loads(capsys.readouterr().out)
    assert list(report["columns"]) == columns
    lines = 4 - ("true" in options) - ("--skip-lines" in options) - 2 * ("--comment" in options)
    assert report["rows"] == lines


@pytest.mark.parametrize(("options", "words"), [(["--delimiter", ";;"], "--delimiter"), (["--names", "a"], "--names")])
def test_an_option_that_cannot_be_is_one_sentence(
    options: list[str], words: str, in_process: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = write_table(tmp_path / "t.csv", 9)
    assert call(["data", "check", str(path), *options]) == 2
    told = capsys.readouterr().err
    assert words in told
    assert "Traceback" not in told
