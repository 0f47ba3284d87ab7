"""Texts of `data.source.missing` that are real values: said with counts and the line that keeps them, in quotes a value
where the file quotes its texts; the same in memory, past memory and for raw rows."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import yaml

from cluster.bundle.transforms import Column, load_transforms
from cluster.errors import DataError
from tests.unit.data_tests.making import check, data_spec, prepare, run_spec
from tests.unit.data_tests.test_delimited import SPLIT, both_ways
from trainers.data.check import make_report
from trainers.data.read.sources import read_source

ROWS = 238
REGIONS = ["NA" if row % 3 else "EU" for row in range(ROWS)]
NUM_NA = REGIONS.count("NA")


def file(path: Path, target: list[str] = REGIONS, region: list[str] | None = None) -> dict[str, Any]:
    lines = [f"{row / 7:.3f},{(region or REGIONS)[row]},{target[row]}" for row in range(ROWS)]
    path.write_text("\n".join(["size,region,y", *lines]) + "\n")
    return {"kind": "csv", "path": str(path)}


@pytest.mark.parametrize("memory_bytes", [None, 1])
@pytest.mark.parametrize("word", ["NA", "nan", "null", "?"])
def test_a_class_that_is_read_as_missing_is_named_with_its_rows_and_the_line_that_keeps_it(
    word: str, memory_bytes: int | None, tmp_path: Path
) -> None:
    target = [word if region == "NA" else region for region in REGIONS]
    source = file(tmp_path / "t.csv", target, ["a"] * ROWS)
    values: dict[str, Any] = {"target": "y", "split": SPLIT, "memory_bytes": memory_bytes}
    with pytest.raises(DataError) as caught:
        check(tmp_path / "run", run_spec(source, **values))
    message = caught.value.message
    assert f"all {ROWS - NUM_NA} rows have the value 'EU', and {NUM_NA} rows of {word!r} are read as missing" in message
    line = message[message.index("data.clean.map_values") :].partition(" keeps")[0]
    kept = yaml.safe_load(line.removeprefix("data.clean.map_values: "))
    result = check(tmp_path / "run", run_spec(source, **values, clean={"map_values": kept}))
    assert result.facts.to_json()["class_rows"] == {"EU": ROWS - NUM_NA, word: NUM_NA}
    alone = file(tmp_path / "alone.csv", [word] * ROWS)
    with pytest.raises(DataError, match="zero rows are left") as caught:
        check(tmp_path / "run", run_spec(alone, **values))
    assert f"{ROWS} rows of {word!r} are read as missing" in caught.value.message


def notes(source: dict[str, Any], folder: Path, **values: Any) -> list[str]:
    """What a run says of missing words, in memory and past it, once both are known to say the same."""
    from trainers.data.executors import THREADS
    from trainers.data.row_plan import plan_files

    spec = run_spec(source, target="y", split=SPLIT, **values).data
    found = [[note for note in said if "read as missing" in note]
             for said in (read_source(spec).notes, plan_files(spec, THREADS).rules.notes)]  # fmt: skip
    assert found[0] == found[1]
    return found[0]


def test_a_frequent_word_of_a_text_column_is_said_and_a_rare_one_or_one_of_numbers_is_not(tmp_path: Path) -> None:
    classes = ["ab"[row % 2] for row in range(ROWS)]
    (note,) = notes(file(tmp_path / "t.csv", classes), tmp_path)
    assert note == (f"column 'region': {NUM_NA} rows of 'NA' are read as missing; if they are values, "
                    'data.clean.map_values: {region: {"NA": "NA"}} keeps them')  # fmt: skip
    rare = ["NA" if row in (5, 6) else "AB"[row % 2] for row in range(ROWS)]
    assert notes(file(tmp_path / "rare.csv", classes, rare), tmp_path) == []
    marks = ["?" if row % 3 else "AB"[row % 2] for row in range(ROWS)]
    assert notes(file(tmp_path / "marks.csv", classes, marks), tmp_path) == []
    numbers = ["NA" if row % 3 else str(row) for row in range(ROWS)]
    assert notes(file(tmp_path / "numbers.csv", classes, numbers), tmp_path) == []
    once = ["NA" if row == 9 else "ab"[row % 2] for row in range(ROWS)]
    (note,) = notes(file(tmp_path / "once.csv", once, ["AB"[row % 2] for row in range(ROWS)]), tmp_path)
    assert note.startswith("column 'y': 1 rows of 'NA' are read as missing")


@pytest.mark.parametrize("memory_bytes", [1 << 30, 1])
def test_the_report_says_the_line_that_keeps_them(memory_bytes: int, tmp_path: Path) -> None:
    source = file(tmp_path / "t.csv", ["NA" if row % 2 else "EU" for row in range(ROWS)])
    report = make_report(source["path"], "y", test=None, memory_bytes=memory_bytes)
    found = {finding.column: finding for finding in report.findings if finding.rule == "missing"}
    assert f"{NUM_NA} rows of 'NA' are read as missing, and may be values" in found["region"].text
    assert 'data.clean.map_values: {region: {"NA": "NA"}} keeps them' in found["region"].fix
    assert "119 rows of 'NA' are read as missing, and may be classes" in found["y"].text
    nothing = file(tmp_path / "nothing.csv", ["NA"] * ROWS)
    report = make_report(nothing["path"], "y", test=None, memory_bytes=memory_bytes)
    assert [(finding.column, finding.severity) for finding in report.findings if finding.rule == "missing"] == [
        ("y", "error"), ("region", "warning")]  # fmt: skip


def quoted(path: Path, *, numbers: bool = False) -> dict[str, Any]:
    """Texts in quotes, missing ones without, as R and QUOTE_NONNUMERIC write them. `numbers`: in quotes too."""
    mark = '"' if numbers else ""
    lines = []
    for row in range(ROWS):
        region = {0: '"EU"', 1: '"NA"', 2: '"SA"', 3: " NA" if row % 2 else "NA"}[row % 4] if not numbers else '"NA"'
        size = f"{mark}NA{mark}" if row % 7 == 1 else '"NA"' if row % 7 == 2 else f"{mark}{row / 7:.3f}{mark}"
        lines.append(f'{size},{region},"{"NA" if row % 3 else "EU"}"')
    path.write_text("\n".join(['"size","region","y"', *lines]) + "\n")
    return {"kind": "csv", "path": str(path)}


def test_in_quotes_they_are_values_where_the_file_quotes_its_texts(tmp_path: Path) -> None:
    source = quoted(tmp_path / "t.csv")
    raw = read_source(data_spec(source, target="y"))
    assert raw.rules is not None
    assert raw.rules.roles == {"size": "number", "region": "category"}
    regions: Any = raw.rows.values["region"]
    assert [regions.words[code] if code >= 0 else None for code in regions.codes[:8]] == [
        "EU", "NA", "SA", None, "EU", "NA", "SA", None]  # fmt: skip
    sizes: Any = raw.rows.values["size"]
    assert [bool(size != size) for size in sizes[:4]] == [False, True, True, False]  # a number has no use for a text
    assert sorted(raw.rows.target.words) == ["EU", "NA"]
    both_ways(tmp_path, source, target="y", encode={"number": "standard"}, clean={"impute": "constant"})
    transforms = load_transforms(json.loads((tmp_path / "here" / "transforms.json").read_text()))
    columns = {column.name: column.missing for column in transforms.columns}  # type: ignore[union-attr]
    assert columns == {"size": ("", "?", "NA", "NaN", "nan", "null"), "region": ("",)}
    served = transforms.apply_rows([{"size": 1.0, "region": "NA"}, {"size": "NA", "region": None}])["features"]
    names = transforms.outputs[0].features  # type: ignore[union-attr]
    assert [served[0][names.index("region=NA")], served[0][names.index("region is missing")]] == [1, 0]
    assert [served[1][names.index("region=NA")], served[1][names.index("region is missing")]] == [0, 1]


def test_quotes_that_tell_nothing_change_nothing_and_a_key_overrules_both(tmp_path: Path) -> None:
    everything = quoted(tmp_path / "all.csv", numbers=True)
    told = quoted(tmp_path / "t.csv")
    for source, asked, classes in (
        (everything, "auto", ["EU"]), (everything, "value", ["EU", "NA"]), (told, "missing", ["EU"]),
    ):  # fmt: skip
        raw = read_source(data_spec({**source, "quoted_missing": asked}, target="y"))
        assert sorted(raw.rows.target.words) == classes


@pytest.mark.parametrize("memory_bytes", [None, 1])
def test_a_quantity_with_a_quoted_word_is_an_error_with_its_remedy(memory_bytes: int | None, tmp_path: Path) -> None:
    rows = ['"NA"' if row == 50 else f"{row * 1.37:.3f}" for row in range(ROWS)]
    lines = [f'"{"ab"[row % 2]}",{row % 9},{rows[row]}' for row in range(ROWS)]
    (tmp_path / "t.csv").write_text("\n".join(['"c","n","y"', *lines]) + "\n")
    source = {"kind": "csv", "path": str(tmp_path / "t.csv")}
    values: dict[str, Any] = {"target": "y", "split": SPLIT, "memory_bytes": memory_bytes}
    with pytest.raises(DataError, match="its values are numbers, and 'NA' in quotes") as caught:
        check(tmp_path / "run", run_spec(source, **values))
    assert "data.source.quoted_missing: missing" in caught.value.message
    spec = run_spec({**source, "quoted_missing": "missing"}, **values)
    assert check(tmp_path / "run", spec).resolved.data.num_rows == ROWS - 1
    prepare(tmp_path / "prepared", spec)


def test_a_text_that_is_mapped_to_itself_is_a_value() -> None:
    column = Column(name="x", kind="text", missing=("", "NA", "?"), mapped={"NA": "NA", "none": "?", "N.A.": "NA"})
    assert [column.clean_word(word) for word in (" NA ", "?", "none", "N.A.", "", "a")] == [
        "NA", None, None, "NA", None, "a"]  # fmt: skip
