"""Dates in any writing, numbers with units and codes of digits: read alike in memory, past it and served."""

from __future__ import annotations

import json
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from cluster.bundle.transforms import Column, Transforms, load_transforms
from cluster.errors import DataError, SpecError
from tests.unit.data_tests.making import data_spec, prepare, run_spec, target_of
from trainers.data.executors import THREADS
from trainers.data.quality.report import check_table
from trainers.data.read.infer import infer_column
from trainers.data.read.raw import RawData
from trainers.data.read.sources import read_source
from trainers.data.row_plan import plan_files

START = datetime(2024, 7, 13, 21, 0, tzinfo=UTC)
DAYS = (START - datetime(1970, 1, 1, tzinfo=UTC)) / timedelta(days=1)
ROWS = 60
ONE_TEST_SPLIT = {"validation": 0.0, "calibration": 0.0, "gate": 0.0, "test": 0.4}


def moments(step: timedelta = timedelta(hours=7)) -> list[datetime]:
    return [START + step * row for row in range(ROWS)]


def read(folder: Path, data: dict[str, Any], **values: Any) -> RawData:
    """The columns as a CSV file that is read in memory; its way past memory has to infer the same."""
    rows = len(next(iter(data.values())))
    cells = {"b": [str(row % 7) for row in range(rows)], **data}
    if "y" not in data:
        cells["y"] = ["yes" if row % 2 else "no" for row in range(rows)]
    lines = [",".join(cells), *(",".join(f'"{cell}"' for cell in row) for row in zip(*cells.values(), strict=True))]
    path = folder / "table.csv"
    path.write_text("\n".join(lines) + "\n")
    return same_both_ways({"kind": "csv", "path": str(path)}, **values)


def same_both_ways(source: dict[str, Any], **values: Any) -> RawData:
    spec = data_spec(source, **{"target": "y", **values})
    raw = read_source(spec)
    assert raw.rules is not None
    if not spec.split.time:
        hashed = spec.split.model_copy(update={**ONE_TEST_SPLIT, "by_hash": True})
        rules = plan_files(spec.model_copy(update={"split": hashed}), THREADS).rules
        assert rules.columns == raw.rules.columns
        assert rules.roles == raw.rules.roles
        assert rules.ignored == raw.rules.ignored
        assert {note for note in rules.notes if "read" in note} == {note for note in raw.notes if "read" in note}
    return raw


def column_of(raw: RawData, name: str) -> Column:
    assert raw.rules is not None
    return next(column for column in raw.rules.columns if column.name == name)


WRITINGS = {
    "%d/%m/%Y %H:%M": "13/07/2024 21:00",
    "%m/%d/%Y %I:%M %p": "07/13/2024 09:00 PM",
    "%d.%m.%Y %H:%M:%S": "13.07.2024 21:00:00",
    "%b %d, %Y %H:%M": "Jul 13, 2024 21:00",
    "%d %b %Y %H:%M": "13 July 2024 21:00",
    "%Y/%m/%d %H:%M": "2024/07/13 21:00",
    "%Y%m%d%H%M": "202407132100",
    "%Y%m%dT%H%M%S": "20240713T210000",
    "%a, %d %b %Y %H:%M:%S %z": "Sat, 13 Jul 2024 23:00:00 +0200",
    "%d/%b/%Y:%H:%M:%S %z": "13/Jul/2024:21:00:00 +0000",
    "%d/%m/%Y %H:%M:%S.%f": "13/07/2024 21:00:00.000",
    "epoch_s": "1720904400",
    "epoch_ms": "1720904400000",
    "": "2024-07-13T21:00:00",
}


@pytest.mark.parametrize("writing", WRITINGS)
def test_every_writing_says_the_same_moment(writing: str) -> None:
    column = Column(name="when", kind="date", date=writing)
    assert column.parse_date(WRITINGS[writing], 0) == DAYS
    assert column.parse_date(None, 0) != column.parse_date(None, 0)
    with pytest.raises(DataError, match=r"row 3 has 'soon'.*the column holds dates"):
        column.parse_date("soon", 3)


@pytest.mark.parametrize("writing", [w for w in WRITINGS if w != ""])
def test_a_writing_is_found_where_all_values_have_it(writing: str, tmp_path: Path) -> None:
    words = [_written(moment, writing) for moment in moments()]
    raw = read(tmp_path, {"event_time": words})
    assert column_of(raw, "event_time").date == writing
    assert raw.rules is not None
    values = np.asarray(raw.rows.values["event_time"])
    np.testing.assert_allclose(values, DAYS + np.arange(ROWS) * 7 / 24, rtol=0, atol=1e-9)
    assert any("event_time" in note and writing in note and "otherwise" in note for note in raw.notes)


def _written(moment: datetime, writing: str) -> str:
    if writing.startswith("epoch"):
        return str(int(moment.timestamp()) * (1000 if writing == "epoch_ms" else 1))
    return moment.strftime(writing)


@pytest.mark.parametrize("mark", ["/", "-"])
def test_dates_that_no_value_settles_are_an_error_with_both_readings(mark: str, tmp_path: Path) -> None:
    words = [f"{1 + row % 12:02}{mark}{1 + row % 9:02}{mark}2024" for row in range(ROWS)]
    words[0] = f"02{mark}02{mark}2024"
    words[1] = f"01{mark}02{mark}2024"
    lines = f"%d{mark}%m{mark}%Y", f"%m{mark}%d{mark}%Y"
    with pytest.raises(DataError) as caught:
        read(tmp_path, {"when": words})
    for line in lines:
        assert f'data.columns: {{when: {{date: "{line}"}}}}' in caught.value.message
    assert f"'01{mark}02{mark}2024' can be read as 2024-02-01 " in caught.value.message  # their readings differ
    findings = {finding.rule: finding for finding in check_table(pa.table({"when": words})).findings}
    assert findings["date_like"].severity == "error"
    assert set(findings) == {"date_like", "duplicate_rows"} or set(findings) == {"date_like"}
    for line, expected in zip(lines, (datetime(2024, 3, 2), datetime(2024, 2, 3)), strict=True):
        settled = read(tmp_path, {"when": [*words[:-1], f"02{mark}03{mark}2024"]}, columns={"when": {"date": line}})
        assert settled.rules is not None
        assert np.asarray(settled.rows.values["when"])[-1] == (expected - datetime(1970, 1, 1)).days
    assert read(tmp_path, {"when": words}, columns={"when": "category"}).rules is not None
    with pytest.raises(DataError, match="no value settles which"):
        read(tmp_path, {"when": words}, columns={"when": "date"})


def test_dots_are_day_first_and_one_value_settles_the_others(tmp_path: Path) -> None:
    raw = read(tmp_path, {"when": [f"01.{1 + row % 12:02}.2024" for row in range(ROWS)]})
    assert column_of(raw, "when").date == "%d.%m.%Y"
    late = [*(f"01/{1 + row % 12:02}/2024" for row in range(ROWS - 1)), "02/13/2024"]
    assert column_of(read(tmp_path, {"when": late}), "when").date == "%m/%d/%Y"


def test_few_words_among_dates_are_named(tmp_path: Path) -> None:
    words = [moment.strftime("%d/%m/%Y %H:%M") for moment in moments()]
    with pytest.raises(DataError, match=r"59 of its 60 different values are dates, but not 'unknown'"):
        read(tmp_path, {"when": [*words[:-1], "unknown"]})
    with pytest.raises(DataError, match=r"row 59 has '31/02/2024 10:00'"):
        read(tmp_path, {"when": [*words[:-1], "31/02/2024 10:00"]})


@pytest.mark.parametrize(
    ("name", "values", "why"),
    [
        ("item", [20240700 + row for row in range(ROWS)], "not all are days"),
        ("code", [20240713 + row % 4 for row in range(ROWS)], "few values that may be anything"),
        ("price", [1_700_000_000 + row * 7 for row in range(ROWS)], "the name says no moment"),
        ("time", [row * 7 for row in range(ROWS)], "seconds since the start of something"),
        ("time_ns", [1_700_000_000 + row for row in range(ROWS)], "nanoseconds: two seconds of 1970"),
        ("version", [f"1.{row % 12}.{row % 9}" for row in range(ROWS)], "versions"),
        ("size", [f"10-11-{row % 30}" for row in range(ROWS)], "sizes"),
    ],
)  # fmt: skip
def test_other_things_do_not_become_dates(name: str, values: list, why: str, tmp_path: Path) -> None:
    raw = read(tmp_path, {name: values})
    assert raw.rules is not None
    assert raw.rules.roles[name] != "date", why


@pytest.mark.parametrize("kind", [pa.int32(), pa.int64(), pa.float64()])
def test_whole_numbers_of_parquet_are_days_too(kind: pa.DataType, tmp_path: Path) -> None:
    days = [int(moment.strftime("%Y%m%d")) for moment in moments(timedelta(days=1))]
    seconds = [int(moment.timestamp()) * 1000 for moment in moments()]
    path = tmp_path / "t.parquet"
    table = {"day": pa.array([*days[:-1], None]).cast(kind), "created_at": pa.array(seconds),
             "b": np.arange(ROWS) % 7, "y": np.arange(ROWS) % 2}  # fmt: skip
    pq.write_table(pa.table(table), path, row_group_size=7)
    raw = same_both_ways({"kind": "parquet", "path": str(path)})
    assert raw.rules is not None
    assert (column_of(raw, "day").date, column_of(raw, "created_at").date) == ("%Y%m%d", "epoch_ms")
    values = np.asarray(raw.rows.values["day"])
    np.testing.assert_array_equal(values[:-1], np.floor(DAYS) + np.arange(ROWS - 1))
    assert np.isnan(values[-1])
    np.testing.assert_allclose(np.asarray(raw.rows.values["created_at"]), DAYS + np.arange(ROWS) * 7 / 24, atol=1e-9)
    plain = same_both_ways({"kind": "parquet", "path": str(path)}, columns={"day": "number", "created_at": "number"})
    assert plain.rules is not None
    assert np.asarray(plain.rows.values["day"])[0] == 20240713


def test_rows_are_split_by_dates_in_any_writing(tmp_path: Path) -> None:
    words = [moment.strftime("%d/%m/%Y %H:%M") for moment in reversed(moments(timedelta(days=9)))]
    raw = read(tmp_path, {"when": words}, split={"time": "when"})
    assert raw.rows.times is not None
    assert np.all(np.diff(raw.rows.times) == -9)
    with pytest.raises(DataError, match="59 of its 60 different values are dates, but not 'later'"):
        read(tmp_path, {"when": [*words[:-1], "later"]}, split={"time": "when"})
    with pytest.raises(DataError, match=r"'when' holds texts such as 'a0', 'a1'.*\{when: \{date: \"%d/%m/%Y %H:%M\"\}"):
        read(tmp_path, {"when": [f"a{row % 5}" for row in range(ROWS)]}, split={"time": "when"})
    ambiguous = [f"{1 + row % 12:02}/01/2024" for row in range(ROWS)]
    with pytest.raises(DataError, match="no value settles which"):
        read(tmp_path, {"when": ambiguous}, split={"time": "when"})
    told = read(tmp_path, {"when": ambiguous}, split={"time": "when"}, columns={"when": {"date": "%m/%d/%Y"}})
    assert told.rows.times is not None
    assert told.rows.times[1] - told.rows.times[0] == 31


UNITS: dict[str, tuple[Callable[[int], str], Callable[[int], float], dict]] = {
    "percent": (lambda row: f"{row}%", float, {"unit": "%"}),
    "money": (lambda row: f"$ {1000 + row:,}.50", lambda row: 1000.5 + row, {"unit": "$", "thousands": ","}),
    "minus": (lambda row: f"-${row}", lambda row: -float(row), {"unit": "$"}),
    "euros": (lambda row: f"1.{row:03},50 €", lambda row: 1000.5 + row, {"thousands": ".", "decimal": ","}),
    "whole euros": (lambda row: f"1.{row:03} €", lambda row: 1000.0 + row, {"thousands": ".", "decimal": ","}),
    "mixed euros": (lambda row: f"1.{row:03}{',50' if row % 2 else ''} €", lambda row: 1000.0 + row + row % 2 / 2,
                    {"thousands": ".", "decimal": ","}),
    "kilograms": (lambda row: f"{row / 2} kg", lambda row: row / 2, {"unit": "kg"}),
    "tight": (lambda row: f"{row}km/h", float, {"unit": "km/h"}),
    "months": (lambda row: f"{12 * (1 + row % 5)} months", lambda row: 12.0 * (1 + row % 5), {"unit": "months"}),
    "pounds": (lambda row: f"£{1 + row},000", lambda row: 1000.0 * (1 + row), {"unit": "£", "thousands": ","}),
}  # fmt: skip


@pytest.mark.parametrize("case", UNITS)
def test_numbers_with_one_unit_are_numbers(case: str, tmp_path: Path) -> None:
    write, value, rules = UNITS[case]
    words = [write(row) for row in range(ROWS)]
    raw = read(tmp_path, {"x": words})
    assert raw.rules is not None
    assert raw.rules.roles["x"] == "number"
    assert {name: getattr(column_of(raw, "x"), name) for name in rules} == rules
    np.testing.assert_array_equal(np.asarray(raw.rows.values["x"]), [value(row) for row in range(ROWS)])
    assert any("column 'x': its values are numbers with the unit" in note for note in raw.notes)
    (finding,) = [finding for finding in check_table(pa.table({"x": words})).findings if finding.column]
    assert (finding.rule, finding.severity) == ("units", "info")


def test_units_that_disagree_and_numbers_with_two_readings(tmp_path: Path) -> None:
    mixed = read(tmp_path, {"x": [f"{row} {'kg' if row % 2 else 'lb'}" for row in range(ROWS)]})
    assert mixed.rules is not None
    assert mixed.rules.roles["x"] == "category"
    for words in ([f"Q{1 + row % 4}" for row in range(ROWS)], [f"{3 + row % 3}G" for row in range(ROWS)]):
        raw = read(tmp_path, {"x": words})
        assert raw.rules is not None
        assert raw.rules.roles["x"] == "category"
    with pytest.raises(DataError) as caught:
        read(tmp_path, {"x": [f"1,{350 + row} kg" for row in range(ROWS)]})
    assert "can be read as 1.35 and as 1350" in caught.value.message.replace("1350 and as 1.35", "1.35 and as 1350")
    for rest in ('thousands: ","', 'thousands: ".", decimal: ","'):
        assert f'data.columns: {{x: {{unit: "kg", {rest}}}}}' in caught.value.message
    path = tmp_path / "table.csv"
    for key, expected in (("thousands", 1350.0), ("decimal", 1.35)):
        source = {"kind": "csv", "path": str(path)}
        declared = same_both_ways(source, columns={"x": {"unit": "kg", key: ","}})
        for told in (same_both_ways({**source, key: ","}), declared):
            assert told.rules is not None
            assert np.asarray(told.rows.values["x"])[0] == expected
    declared = read(tmp_path, {"x": [f"{row} Stk" if row % 2 else str(row) for row in range(ROWS)]},
                    columns={"x": {"unit": "Stk"}})  # fmt: skip
    assert declared.rules is not None
    np.testing.assert_array_equal(np.asarray(declared.rows.values["x"]), np.arange(ROWS))


CODES: dict[str, Callable[[int], str]] = {
    "leading zeros": lambda row: f"{501 + row % 12:05}",
    "25 digits": lambda row: f"12345678901234567890123{row % 12:02}",
    "16 digits": lambda row: f"40000000000000{row % 12:02}",
}


@pytest.mark.parametrize("case", CODES)
def test_digits_that_a_number_would_change_are_categories(case: str, tmp_path: Path) -> None:
    words = [CODES[case](row) for row in range(ROWS)]
    raw = read(tmp_path, {"code": words})
    assert raw.rules is not None
    assert raw.rules.roles["code"] == "category"
    assert sorted(raw.rows.values["code"].words) == sorted(set(words))
    assert any("data.columns: {code: number}" in note for note in raw.notes)
    findings = {finding.rule: finding for finding in check_table(pa.table({"code": words})).findings}
    assert findings["codes"].fix == "data.columns: {code: number}"
    assert "constant" not in findings
    told = read(tmp_path, {"code": words}, columns={"code": "number"})
    if case != "25 digits":  # of which float64 makes one value, and it is what was asked for
        assert told.rules is not None
        assert np.asarray(told.rows.values["code"])[3] == float(words[3])


def test_padded_decimals_and_dates_are_no_codes(tmp_path: Path) -> None:
    raw = read(tmp_path, {"x": [f"{row:06.2f}" for row in range(ROWS)], "small": [f"0.{row}" for row in range(ROWS)]})
    assert raw.rules is not None
    assert set(raw.rules.roles.values()) == {"number"}


def test_long_integers_of_parquet_and_json_keep_their_digits(tmp_path: Path) -> None:
    account = 9_007_199_254_740_993 + np.arange(ROWS) % 12  # 2^53 + 1: float64 cannot tell it from its neighbors
    table = pa.table({"account": account, "b": np.arange(ROWS) % 7, "y": np.arange(ROWS) % 2})
    pq.write_table(table, tmp_path / "t.parquet", row_group_size=7)
    rows = [{**row, "big": 10**24 + at % 3} for at, row in enumerate(table.to_pylist())]
    (tmp_path / "t.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    for kind in ("parquet", "jsonl"):
        raw = same_both_ways({"kind": kind, "path": str(tmp_path / f"t.{kind}")})
        assert raw.rules is not None
        assert sorted(raw.rows.values["account"].words) == [str(9_007_199_254_740_993 + at) for at in range(12)]
        column = column_of(raw, "account")
        served = column.from_rows([int(account[0]), str(account[0])])
        assert served.words == (str(account[0]),)
        if kind == "jsonl":
            assert sorted(raw.rows.values["big"].words) == [str(10**24 + at) for at in range(3)]
    with pytest.raises(DataError, match=r"has lost digits on its way.*Send it as a string"):
        column.from_rows([float(10**24)])
    grouped = read_source(data_spec({"kind": "parquet", "path": str(tmp_path / "t.parquet")}, target="y",
                                    split={"group": "account"}))  # fmt: skip
    assert grouped.rules is not None
    assert len(np.unique(grouped.rows.keys)) == 12
    rules = {(finding.rule, finding.column) for finding in check_table(table).findings}
    assert ("codes", "account") in rules
    assert ("constant", "account") not in rules


@pytest.mark.parametrize(
    ("words", "labels"),
    [
        (["00501", "501"], ["00501", "501"]),
        (["1234567890123456789012345", "1234567890123456789012346"],) * 2,
        (["36 months", "60 months"],) * 2,
    ],
)
def test_classes_of_digits_stay_apart(words: list[str], labels: list[str], tmp_path: Path) -> None:
    raw = read(tmp_path, {"y": [words[row % 2] for row in range(ROWS)]})
    assert sorted(set(raw.rows.target.words)) == sorted(labels)


def test_a_quantity_with_a_unit_is_a_quantity(tmp_path: Path) -> None:
    raw = read(tmp_path, {"y": [f"$ {1000 + row:,}.00" for row in range(ROWS)]})
    np.testing.assert_array_equal(target_of(raw), 1000.0 + np.arange(ROWS))


def test_nearly_unique_texts_are_never_one_hot(tmp_path: Path) -> None:
    num_rows = 300
    tickets = [f"PC {17000 + row * 3 // 4}" for row in range(num_rows)]
    ids = [f"u{row:05}x" for row in range(num_rows)]
    names = [f"Kim {row} Lee" for row in range(num_rows)]
    raw = read(tmp_path, {"ticket": tickets, "id": ids, "name": names})
    assert raw.rules is not None
    assert raw.rules.roles == {"b": "number", "ticket": "text", "name": "text"}
    assert "column 'id' is left out: nearly each row has a value of its own: an identifier" in raw.notes
    assert any("column 'ticket': 225 of 300 values are different: read as text" in note for note in raw.notes)
    prepare(tmp_path / "run", run_spec({"kind": "csv", "path": str(tmp_path / "table.csv")}, target="y"))
    transforms = load_transforms(json.loads((tmp_path / "run" / "transforms.json").read_text()))
    assert isinstance(transforms, Transforms)
    names = {name for name in transforms.outputs[0].features if "[" not in name}
    assert names == {"b", "ticket: pc", "name: kim", "name: lee"}, "words that several rows share"
    told = read(tmp_path, {"ticket": tickets}, columns={"ticket": "category"})
    assert told.rules is not None
    assert told.rules.roles["ticket"] == "category"


def test_unique_dates_are_no_identifiers() -> None:
    typed = [START + timedelta(minutes=row) for row in range(300)]
    columns = {"iso": [moment.isoformat() for moment in typed], "typed": pa.array(typed)}
    columns["other"] = [moment.strftime("%d/%m/%Y %H:%M") for moment in typed]
    columns["again"] = columns["iso"]
    findings = check_table(pa.table(columns)).findings
    assert {(finding.rule, finding.column) for finding in findings} == {
        ("date_like", "other"), ("near_duplicate", "again")}  # fmt: skip


def test_a_served_row_is_read_as_its_row_of_the_file(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    num_rows = 300
    lines = ["when,weight,price,zip,day,seen_at,account,y"]
    rows = []
    for row in range(num_rows):
        moment = START + timedelta(hours=31 * row)
        rows.append({
            "when": moment.strftime("%d/%m/%Y %H:%M"), "weight": f"{rng.uniform(50, 90):.1f} kg",
            "price": f"$ {1000 + row}.25", "zip": f"{rng.integers(0, 20):05}", "day": moment.strftime("%Y%m%d"),
            "seen_at": str(int(moment.timestamp())), "account": f"40000000000000{rng.integers(0, 20):02}",
            "y": "yes" if rng.random() < 0.5 else "no",
        })  # fmt: skip
        lines.append(",".join(rows[-1].values()))
    path = tmp_path / "t.csv"
    path.write_text("\n".join(lines) + "\n")
    spec = run_spec({"kind": "csv", "path": str(path)}, target="y", split={"validation": 0, "calibration": 0,
                    "gate": 0, "test": 60})  # fmt: skip
    prepare(tmp_path / "run", spec)
    raw = json.loads((tmp_path / "run" / "transforms.json").read_text())
    transforms = load_transforms(raw)
    assert isinstance(transforms, Transforms)
    served = transforms.apply_rows(rows)["features"]
    shards = np.concatenate([np.load(tmp_path / "run" / split / "inputs.features.npy") for split in ("train", "test")])
    np.testing.assert_array_equal(np.unique(served, axis=0), np.unique(shards, axis=0))
    typed = [{**row, "weight": float(row["weight"][:-3]), "price": float(row["price"][2:]), "day": int(row["day"]),
              "seen_at": int(row["seen_at"]), "account": int(row["account"])} for row in rows]  # fmt: skip
    np.testing.assert_array_equal(transforms.apply_rows(typed)["features"], served)
    for name, bad in (("when", "07-13-2024"), ("weight", "70 lb"), ("day", "20241301")):
        with pytest.raises(DataError, match=f"Cannot read column '{name}'"):
            transforms.apply_rows([{**rows[0], name: bad}])


def test_old_transforms_read_as_before() -> None:
    old = {"name": "day", "kind": "date", "missing": [""], "mapped": {}, "infinite": "error", "thousands": ""}
    column = Column.model_validate_json(json.dumps(old))
    assert column.parse_date("1970-01-03", 0) == 2
    assert column.date == ""


@pytest.mark.parametrize(
    ("value", "words"),
    [
        ({"date": "%d/%m %H:%M"}, "must hold a year"),
        ({"date": "%Q-%Y"}, "%Q is none of them"),
        ({"date": "%I:%M %d/%m/%Y"}, "needs AM or PM"),
        ({"date": "%d %Y"}, "must hold the month of its day"),
        ({"date": "%Y", "unit": "kg"}, "either date, or unit"),
        ({"unit": "kg", "thousands": "."}, "both thousands and decimal"),
        ({"dates": "%Y"}, "did you mean"),
        ("datum", "must be"),
    ],
)
def test_a_writing_that_no_date_has_is_refused(value: Any, words: str) -> None:
    with pytest.raises(SpecError) as caught:
        run_spec({"kind": "csv", "path": "t.csv"}, columns={"when": value})
    assert words in caught.value.message
    assert "data.columns.when" in caught.value.message


def test_more_words_than_are_kept_are_judged_by_their_number(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr("trainers.data.read.column_scan.WORDS_MAX", 120)
    raw = read(tmp_path, {"ticket": [f"PC {17000 + row * 3 // 4}" for row in range(300)]})
    assert raw.rules is not None
    assert raw.rules.roles["ticket"] == "text"


def test_the_role_follows_from_all_values_not_from_the_first(tmp_path: Path) -> None:
    spec = data_spec({"kind": "csv", "path": "t.csv"}, target="y")
    values = pa.chunked_array([pa.array(["01/02/2024", "13/02/2024"]), pa.array(["02/13/2024"])])
    assert infer_column(spec, "when", values).role == "category"
