"""Delimited text as it is in the world: titles, comments, totals, files without a header, decimal commas, packed files;
the same in memory, past memory and at serving; and what can be read in two ways."""

from __future__ import annotations

import gzip
import json
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from cluster.bundle.transforms import Column, load_transforms
from cluster.errors import DataError, SpecError
from tests.unit.data_tests.making import check, data_spec, prepare, run_spec, target_of, write_table
from trainers.data.read import batches, delimited
from trainers.data.read.delimited import settle_source
from trainers.data.read.sources import read_source
from trainers.data.read.table_files import load_tables
from trainers.data.shards import open_prepared

SPLIT = {"by_hash": True, "validation": 0.2, "calibration": 0, "gate": 0, "test": 0.2}


def prepared(folder: Path, source: dict[str, Any], *, past: bool, **values: Any) -> Any:
    """The prepared data set of a source, in memory or past it."""
    spec = run_spec(source, **{"split": SPLIT, "memory_bytes": 1 if past else None, **values})
    prepare(folder, spec)
    return open_prepared(folder)


def both_ways(folder: Path, source: dict[str, Any], **values: Any) -> Any:
    """Prepared in memory, once that is known to be what is prepared past it."""
    here = prepared(folder / "here", source, past=False, **values)
    there = prepared(folder / "there", source, past=True, **values)
    assert (folder / "here" / "transforms.json").read_bytes() == (folder / "there" / "transforms.json").read_bytes()
    for name, split in here.splits.items():
        for tensor in here.inputs:
            assert np.array_equal(split.inputs[tensor.name], there.splits[name].inputs[tensor.name])
        assert np.array_equal(split.targets, there.splits[name].targets)
    return here


def number(value: float, thousands: str = "") -> str:
    """As a German spreadsheet writes it."""
    return f"{value:,.2f}".replace(",", "\0").replace(".", ",").replace("\0", thousands)


@pytest.mark.parametrize("thousands", ["", "."])
def test_decimal_commas_are_numbers_in_features_target_and_raw_rows(thousands: str, tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    values = rng.normal(0, 2_000, (300, 2)).round(2)
    lines = [f"{number(a, thousands)};{number(b, thousands)};{number(a - b, thousands)}" for a, b in values]
    path = tmp_path / "t.csv"
    path.write_text("\n".join(["a;b;y", *lines]) + "\n")
    source = {"kind": "csv", "path": str(path), "delimiter": ";", "decimal": ",", "thousands": thousands}
    raw = read_source(run_spec(source, target="y").data)
    assert raw.rules is not None
    assert np.allclose(raw.rows.values["a"], values[:, 0], atol=0)
    assert np.allclose(target_of(raw), values[:, 0] - values[:, 1], rtol=1e-6)
    data = both_ways(tmp_path, source, target="y", encode={"number": "standard"})
    assert data.task == "regression"
    transforms = load_transforms(json.loads((tmp_path / "here" / "transforms.json").read_text()))
    words = [{"a": number(a, thousands), "b": number(b, thousands)} for a, b in values]
    floats = [{"a": float(a), "b": float(b)} for a, b in values]
    served = transforms.apply_rows(words)["features"]
    assert np.array_equal(served, transforms.apply_rows(floats)["features"])
    kept = {row.tobytes() for split in data.splits.values() for row in split.inputs["features"]}
    assert all(row.tobytes() in kept for row in served)


@pytest.mark.parametrize(
    ("word", "thousands", "value"),
    [
        ("3,14", "", 3.14), ("-3,14", "", -3.14), ("7", "", 7.0), (",5", "", 0.5), ("1e3", "", 1000.0),
        ("1.234,5", ".", 1234.5), ("-1.234.567", ".", -1234567.0), ("1 234,5", " ", 1234.5),
        ("3.14", "", None), ("3.14", ".", None), ("1.23,4", ".", None), ("3,1,4", "", None), ("3,1.4", ".", None),
        ("1.2345", ".", None), (".123", ".", None), ("", "", None), ("abc", ".", None),
    ],
)  # fmt: skip
def test_a_decimal_comma_reads_one_number_or_none(word: str, thousands: str, value: float | None) -> None:
    """ "3.14" in such a column is no 314 and no 3.14: it is refused."""
    column = Column(name="x", kind="number", decimal=",", thousands=thousands, missing=())
    if value is None:
        with pytest.raises(DataError, match="the column holds numbers"):
            column.parse_number(word, 0)
    else:
        assert column.parse_number(word, 0) == value


def test_one_mark_cannot_be_both(tmp_path: Path) -> None:
    with pytest.raises(SpecError, match="thousands and decimal are both ','"):
        run_spec({"kind": "csv", "path": "t.csv", "decimal": ",", "thousands": ","})


AUTO = dict.fromkeys(("delimiter", "header", "skip_lines", "skip_last_lines", "comment", "decimal"), "auto")
ROWS = [["1.5", "red", "yes"], ["2.5", "blue", "no"], ["4", "red", "yes"], ["5", "blue", "no"]]
LINES = "".join(",".join(row) + "\n" for row in ROWS)
NAMES = ["size", "color", "y"]
HEAD = ",".join(NAMES) + "\n"
NUMBERED = ["column_1", "column_2", "column_3"]
FILES: dict[str, tuple[str, dict[str, Any], list[str], list[list[str]]]] = {
    # name: (text, keys of the source, names, rows); with no keys everything is `auto`
    "plain": (HEAD + LINES, {}, NAMES, ROWS),
    "plain by default": (HEAD + LINES, {"header": True}, NAMES, ROWS),
    "blank lines": ("\n\n" + HEAD + "\n" + LINES + "\n\n", {}, NAMES, ROWS),
    "no header": (LINES, {}, NUMBERED, ROWS),
    "no header, said": (LINES, {"header": False}, NUMBERED, ROWS),
    "no header, names": (LINES, {"header": False, "names": NAMES}, NAMES, ROWS),
    "other names": ("a,b,c\n" + LINES, {"names": NAMES}, NAMES, ROWS),
    "semicolons": ((HEAD + LINES).replace(",", ";"), {}, NAMES, ROWS),
    "tabs": ((HEAD + LINES).replace(",", "\t"), {}, NAMES, ROWS),
    "bars": ((HEAD + LINES).replace(",", "|"), {"delimiter": "auto"}, NAMES, ROWS),
    "spaces": ((HEAD + LINES).replace(",", " "), {}, NAMES, ROWS),
    "a title": ("Sizes, 2024\nby the office\n\n" + HEAD + LINES, {}, NAMES, ROWS),
    "a title, said": ("Sizes, of, 2024\n" + HEAD + LINES, {"skip_lines": 1}, NAMES, ROWS),
    "a title, no header": ("Sizes\n" + LINES, {}, NUMBERED, ROWS),
    "comments": ("# a, b, c\n#\n" + HEAD + LINES, {}, NAMES, ROWS),
    "comments between": (HEAD + '# "quoted, once\n'.join(["", *LINES.splitlines(keepends=True), ""]),
                         {"comment": "#"}, NAMES, ROWS),
    "comments of two marks": ("// x\n" + HEAD + "// y\n" + LINES + "//", {"comment": "//"}, NAMES, ROWS),
    "a comment in quotes": (HEAD + LINES + '7,"a\n# no comment\nb",yes\n# a comment\n', {"comment": "#"}, NAMES,
                            [*ROWS, ["7", "a\n# no comment\nb", "yes"]]),
    "totals": (HEAD + LINES + "Total: 13\n", {}, NAMES, ROWS),
    "totals in a row": (HEAD + LINES + "Total,,\n\n", {}, NAMES, ROWS),
    "totals, said": (HEAD + LINES + "a,b\nc\n\n", {"skip_last_lines": 2}, NAMES, ROWS),
    "carriage returns": ((HEAD + LINES).replace("\n", "\r") + "Sum,,\r", {}, NAMES, ROWS),
    "windows": ("\ufeff" + ("# x\n" + HEAD + LINES).replace("\n", "\r\n"), {}, NAMES, ROWS),
    "a quoted delimiter": (HEAD + LINES + '9,"a;b, c",no\n', {}, NAMES, [*ROWS, ["9", "a;b, c", "no"]]),
    "no end of line": (HEAD + LINES.rstrip(), {}, NAMES, ROWS),
    "a word that repeats is a row": ("red,yes\nblue,no\nred,no\n", {}, ["column_1", "column_2"],
                                     [["red", "yes"], ["blue", "no"], ["red", "no"]]),
    "words that repeat below names": ("color,y\n" + "red,yes\nblue,no\n" * 5, {}, ["color", "y"],
                                      [["red", "yes"], ["blue", "no"]] * 5),
    "years over numbers": ("when,2019,2020\n2024-01-01,1,3\n2024-01-02,2,9\n", {}, ["when", "2019", "2020"],
                           [["2024-01-01", "1", "3"], ["2024-01-02", "2", "9"]]),
}  # fmt: skip


def table_of(names: list[str], rows: list[list[str]]) -> dict[str, list[str]]:
    return {name: [row[at] for row in rows] for at, name in enumerate(names)}


@pytest.mark.parametrize("case", FILES)
def test_a_file_is_read_the_same_whole_and_in_blocks(
    case: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    text, keys, names, rows = FILES[case]
    path = tmp_path / "t.csv"
    path.write_bytes(text.encode())
    source = data_spec({"kind": "csv", "path": str(path), **(keys or AUTO)}).source
    table, *_ = load_tables(source)
    assert table.to_pydict() == table_of(names, rows)
    for block_bytes in (8 << 20, 16):
        monkeypatch.setattr(delimited, "BLOCK_BYTES", block_bytes)
        batches_ = list(batches.read_batches([path], source))  # type: ignore[arg-type]
        found: dict[str, list[str]] = {name: [] for name in names}
        for batch in batches_:
            for name in names:
                found[name] += batch.column(name).to_pylist()
        assert found == table_of(names, rows)


@pytest.mark.parametrize("encoding", ["utf-8", "utf-16", "utf-16-le", "cp1252"])
@pytest.mark.parametrize("packed", ["", "gz", "zip"])
def test_packed_files_and_encodings_read_alike(packed: str, encoding: str, tmp_path: Path) -> None:
    """With a title and totals, which need the file's start and end."""
    content = ("Größen\n" + HEAD + LINES + "9,Öl,no\nTotal: 13\n").encode(encoding)
    path = tmp_path / f"t.csv{packed and '.' + packed}"
    if packed == "zip":
        with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
            archive.writestr("data/", "")
            archive.writestr("data/t.csv", content)
            archive.writestr("__MACOSX/._t.csv", b"x")
    else:
        path.write_bytes(gzip.compress(content) if packed else content)
    source = data_spec({"kind": "csv", "path": str(path), "encoding": encoding, **AUTO}).source
    expected = table_of(NAMES, [*ROWS, ["9", "Öl", "no"]])
    assert load_tables(source)[0].to_pydict() == expected
    (batch,) = batches.read_batches([path], source)  # type: ignore[arg-type]
    assert batch.to_pydict() == expected
    assert batches.whole_bytes([path], source) > len(content)  # type: ignore[arg-type]


BOTH_WAYS = {
    "delimiter": ("a,b;c\n1,2;3\n2,3;5\n", ["['a', 'b;c']", "['a,b', 'c']", "data.source.delimiter"]),
    "header": ("anna,berlin\nbob,rome\ncarl,oslo\n", [
        "as a header it names the columns ['anna', 'berlin']",
        "as a row of the columns column_1, column_2, … it holds ['anna', 'berlin']",
        "data.source.header: true or false"]),
    "years": ("land,2019,2020\nX,1,5\nY,2,9\n", ["as a header", "as a row", "nothing in the columns distinguishes"]),
    "one column against another": ("id,7\n1,8\n2,9\n", ["'id' stands over numbers", "'7' is a number, as those"]),
    "decimal": ("a;b\n1,234;x\n5,678;y\n", ["that is 1.234", "separators of thousands 1234", "data.source.decimal"]),
    "two marks": ("a;b\n1,5;x\n2.5;y\n", ["'1,5' and '2.5'", "a file has one decimal mark"]),
    "a name left out": ("a;b\nx;1;2\ny;3;4\nx;5;6\n", ["['a', 'b'] has 2", "data.source.skip_lines: 1"]),
}  # fmt: skip


@pytest.mark.parametrize("case", BOTH_WAYS)
def test_a_file_that_reads_in_two_ways_is_an_error_that_shows_both(case: str, tmp_path: Path) -> None:
    text, words = BOTH_WAYS[case]
    (tmp_path / "t.csv").write_text(text)
    with pytest.raises(DataError) as caught:
        check(tmp_path / "run", run_spec({"kind": "csv", "path": str(tmp_path / "t.csv"), **AUTO}, target="y"))
    assert caught.value.exit_code == 2
    for word in words:
        assert word in caught.value.message


def test_what_auto_found_is_resolved_with_its_reason_and_the_default_is_as_before(tmp_path: Path) -> None:
    path = tmp_path / "t.csv"
    path.write_text("".join(f"{n / 7:.3f};{'ab'[n % 2]}\n".replace(".", ",") for n in range(60)))
    result = check(tmp_path / "run", run_spec({"kind": "csv", "path": str(path), **AUTO}, target="column_2"))
    source = result.resolved.spec.data.source
    assert (source.delimiter, source.header, source.decimal, source.comment) == (";", False, ",", None)
    assert all(getattr(source, key) != "auto" for key in delimited.KEYS)
    reasons = {reason.path: reason.reason for reason in result.resolved.reasons}
    assert reasons["data.source.delimiter"] == "each line has 2 fields with a semicolon"
    assert "is a number, as those below it" in reasons["data.source.header"]
    assert result.resolved.model_validate_json(result.resolved.model_dump_json()) == result.resolved
    plain = settle_source(data_spec({"kind": "csv", "path": str(write_table(tmp_path / "p.csv", 9))}).source, path)  # type: ignore[arg-type]
    assert (plain.source.delimiter, plain.source.header, plain.source.decimal) == (",", True, ".")


def zipped(path: Path, names: list[str], content: bytes = b"a,b\n1,2\n") -> None:
    with zipfile.ZipFile(path, "w") as archive:
        for name in names:
            archive.writestr(name, content)


@pytest.mark.parametrize(
    ("names", "words"),
    [
        (["a.csv", "b.csv"], "the zip holds 2 files: a.csv, b.csv; a zip holds one table. Unpack it"),
        (["xl/workbook.xml", "xl/sheet1.xml"], "It is a workbook: save its sheet as CSV"),
        ([], "Cannot"),
        (["cut.csv"], "Cannot unpack"),
    ],
)
def test_a_zip_of_no_table_or_several_is_one_sentence(names: list[str], words: str, tmp_path: Path) -> None:
    path = tmp_path / "t.zip"
    zipped(path, names)
    if names == ["cut.csv"]:
        path.write_bytes(path.read_bytes()[:60])
    for memory in (None, 1):
        with pytest.raises(DataError) as caught:
            check(tmp_path / "run", run_spec({"kind": "csv", "path": str(path)}, target="b", memory_bytes=memory,
                                             split=SPLIT))  # fmt: skip
        assert words in caught.value.message


@pytest.mark.parametrize(
    ("values", "words"),
    [({"names": ["a", "a"]}, "names has 'a' twice"), ({"skip_lines": -1}, "skip_lines"), ({"header": "yes"}, "header")],
)
def test_a_wrong_key_of_reading_is_a_wrong_spec(values: dict[str, Any], words: str) -> None:
    with pytest.raises(SpecError, match=words):
        run_spec({"kind": "csv", "path": "t.csv", **values})


def test_too_few_names_are_an_error_with_both_counts(tmp_path: Path) -> None:
    (tmp_path / "t.csv").write_text(LINES)
    source = {"kind": "csv", "path": str(tmp_path / "t.csv"), "header": False, "names": ["a", "b"]}
    with pytest.raises(DataError, match=r"its first line has 3 fields, and data\.source\.names has 2"):
        read_source(data_spec(source, target="b"))
