"""Column types of warehouses: each becomes numbers, texts or dates, or is left out with one sentence; the same in
memory and past it, in the quality report, and for raw rows."""

from __future__ import annotations

import json
from datetime import date, datetime, time, timedelta
from decimal import Decimal
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from cluster.bundle.transforms import load_transforms
from cluster.errors import DataError
from tests.unit.data_tests.making import check, data_spec, prepare, run_spec
from tests.unit.data_tests.test_delimited import SPLIT, both_ways
from trainers.data.check import make_report
from trainers.data.quality.findings import Finding
from trainers.data.read.sources import read_source

ROWS = 200


def holes(values: list[Any]) -> list[Any]:
    """A null in every seventh row."""
    return [None if row % 7 == 3 else value for row, value in enumerate(values)]


def numbers(scale: float = 1.0) -> list[float]:
    return [round(float(value) * scale, 2) for value in np.random.default_rng(0).normal(size=ROWS)]


MOMENTS = [datetime(2024, 1, 1, row % 24, row % 60) + timedelta(days=row) for row in range(ROWS)]
WORDS = [("red", "blue", "green")[row % 3] for row in range(ROWS)]
GOOD: dict[str, tuple[pa.Array, str, list[Any]]] = {
    # name: (column, role, its values as numbers or words, None where missing)
    "decimal128": (pa.array([None if v is None else Decimal(str(v)) for v in holes(numbers())], pa.decimal128(10, 2)),
                   "number", holes(numbers())),
    "decimal256": (pa.array([Decimal(str(v)) for v in numbers()], pa.decimal256(60, 2)), "number", numbers()),
    "nullable int": (pa.array(holes(list(range(ROWS))), pa.int16()), "number", holes(list(range(ROWS)))),
    "half": (pa.array(np.arange(ROWS, dtype=np.float16)), "number", list(range(ROWS))),
    "boolean": (pa.array(holes([row % 2 == 0 for row in range(ROWS)])), "number",
                holes([float(row % 2 == 0) for row in range(ROWS)])),
    "dictionary": (pa.array(holes(WORDS)).dictionary_encode(), "category", holes(WORDS)),
    "dictionary of numbers": (pa.array([row % 5 for row in range(ROWS)]).dictionary_encode(), "number",
                              [row % 5 for row in range(ROWS)]),
    "large string": (pa.array(holes(WORDS), pa.large_string()), "category", holes(WORDS)),
    "string view": (pa.array(WORDS, pa.string_view()), "category", WORDS),
    "day": (pa.array([moment.date() for moment in MOMENTS], pa.date32()), "date",
            [(moment.date() - date(1970, 1, 1)).days for moment in MOMENTS]),
    "nanoseconds": (pa.array(MOMENTS, pa.timestamp("ns")), "date",
                    [(moment - datetime(1970, 1, 1)) / timedelta(days=1) for moment in MOMENTS]),
    "zone": (pa.array(MOMENTS, pa.timestamp("us", tz="Europe/Berlin")), "date",
             [(moment - datetime(1970, 1, 1)) / timedelta(days=1) for moment in MOMENTS]),
    "duration": (pa.array([timedelta(seconds=row / 4) for row in range(ROWS)], pa.duration("ms")), "number",
                 [row / 4 for row in range(ROWS)]),
    "time of day": (pa.array([time(row % 24, row % 60) for row in range(ROWS)], pa.time64("us")), "number",
                    [row % 24 * 3600 + row % 60 * 60 for row in range(ROWS)]),
    "seconds of day": (pa.array([time(row % 24, row % 60) for row in range(ROWS)], pa.time32("s")), "number",
                       [row % 24 * 3600 + row % 60 * 60 for row in range(ROWS)]),
}  # fmt: skip
Y = pa.array([row % 2 for row in range(ROWS)])
BAD = {
    "tags": (pa.array([["a", "b"]] * ROWS), "of other things than numbers (its type is list<"),
    "ragged": (pa.array([[1.0] * (row % 3) for row in range(ROWS)]), "it holds lists of several lengths"),
    "bytes": (pa.array([b"x"] * ROWS), "no numbers, texts or dates (its type is binary"),
    "pairs": (pa.array([[("a", 1)]] * ROWS, pa.map_(pa.string(), pa.int64())), "its type is map<"),
    "nothing": (pa.nulls(ROWS), "every value is missing"),
}


def parquet(path: Path, columns: dict[str, pa.Array], *, row_group_size: int = 60) -> dict[str, Any]:
    pq.write_table(pa.table({**columns, "y": Y}), path, row_group_size=row_group_size)
    return {"kind": "parquet", "path": str(path)}


def test_each_good_type_has_its_values_and_serving_reads_them(tmp_path: Path) -> None:
    columns = {name: column for name, (column, _, _) in GOOD.items()}
    source = parquet(tmp_path / "t.parquet", columns)
    raw = read_source(data_spec(source, target="y"))
    assert raw.rules is not None
    assert raw.rules.roles == {name: role for name, (_, role, _) in GOOD.items()}
    for name, (_, _, expected) in GOOD.items():
        found: Any = raw.rows.values[name]
        if hasattr(found, "words"):
            found = [found.words[code] if code >= 0 else None for code in found.codes]
            assert found == expected, name
        else:
            wanted = np.array([np.nan if value is None else value for value in expected], dtype=np.float64)
            np.testing.assert_allclose(found, wanted, rtol=1e-15, err_msg=name)
    assert any("'duration' is read as seconds (its type is duration[ms])" in note for note in raw.notes)
    assert any("'time of day' is read as seconds since midnight" in note for note in raw.notes)
    data = both_ways(tmp_path, source, target="y", encode={"number": "standard"}, clean={"impute": "constant"})
    transforms = load_transforms(json.loads((tmp_path / "here" / "transforms.json").read_text()))
    rows = [{name: expected[row] if role != "date" else MOMENTS[row].isoformat() if name != "day"
             else MOMENTS[row].date().isoformat() for name, (_, role, expected) in GOOD.items()}
            for row in range(ROWS)]  # fmt: skip
    kept = {row.tobytes() for split in data.splits.values() for row in split.inputs["features"]}
    assert all(row.tobytes() in kept for row in transforms.apply_rows(rows)["features"])


@pytest.mark.parametrize("name", BAD)
def test_a_bad_column_is_left_out_with_one_sentence_and_refused_where_it_is_named(name: str, tmp_path: Path) -> None:
    column, words = BAD[name]
    source = parquet(tmp_path / "t.parquet", {"a": pa.array(numbers()), name: column})
    for folder, memory in (("here", None), ("past", 1)):
        spec = run_spec(source, target="y", split=SPLIT, memory_bytes=memory)
        prepare(tmp_path / folder, spec)
        ignored = json.loads((tmp_path / folder / "transforms.json").read_text())["ignored"]
        assert ignored == [name, "y"]
        if name == "nothing":
            continue
        for named in ({"columns": {name: "number"}}, {"target": name}, {"clean": {"drop_missing_rows": [name]}}):
            with pytest.raises(DataError) as caught:
                check(tmp_path / "bad", run_spec(source, **{"target": "y", "split": SPLIT, "memory_bytes": memory,
                                                            **named}))  # fmt: skip
            assert words in caught.value.message
        check(tmp_path / "ok", run_spec(source, target="y", split=SPLIT, memory_bytes=memory, drop_columns=[name]))
    notes = read_source(data_spec(source, target="y")).notes
    assert any(note.startswith(f"column '{name}' is left out: ") and words in note for note in notes)
    if name == "nothing":
        return
    for memory_bytes in (1 << 30, 1):
        report = make_report(source["path"], None, test=None, memory_bytes=memory_bytes)
        (found,) = [finding for finding in report.findings if finding.rule == "unusable_type"]
        assert isinstance(found, Finding)
        assert (found.column, found.fix) == (name, f"data.drop_columns: [{name}]")
        assert words in found.text
        assert list(report.columns) == ["a", "y"]


def nested() -> dict[str, pa.Array]:
    rng = np.random.default_rng(1)
    vectors = holes(rng.normal(size=(ROWS, 3)).round(3).tolist())
    return {
        "a": pa.array(numbers()),
        "vector": pa.array(vectors),
        "fixed": pa.array(rng.integers(0, 9, (ROWS, 2)).tolist(), pa.list_(pa.int8(), 2)),
        "place": pa.array(holes([{"city": WORDS[row], "at": {"x": row / 3}} for row in range(ROWS)])),
    }


def test_lists_are_inputs_of_their_own_and_structs_are_columns_by_name(tmp_path: Path) -> None:
    """Raw rows may be nested, as the file is."""
    columns = nested()
    source = parquet(tmp_path / "t.parquet", columns)
    data = both_ways(tmp_path, source, target="y", encode={"number": "standard"}, clean={"impute": "mean"})
    assert {tensor.name: tensor.shape for tensor in data.inputs} == {
        "features": (-1, 7), "vector": (-1, 3), "fixed": (-1, 2)}  # fmt: skip
    transforms = load_transforms(json.loads((tmp_path / "here" / "transforms.json").read_text()))
    names = [column.name for column in transforms.columns]  # type: ignore[union-attr]
    assert names == ["a", "vector[0]", "vector[1]", "vector[2]", "fixed[0]", "fixed[1]", "place.city", "place.at.x"]
    rows = pa.table(columns).to_pylist()
    served = transforms.apply_rows(rows)
    whole = np.concatenate([served[tensor.name] for tensor in data.inputs], axis=1)
    kept = {np.concatenate([split.inputs[tensor.name][row] for tensor in data.inputs]).tobytes()
            for split in data.splits.values() for row in range(len(split))}  # fmt: skip
    assert all(row.tobytes() in kept for row in whole)
    with pytest.raises(DataError, match=r"column 'vector\[2\]' is missing in row 0"):
        transforms.apply_rows([{**rows[0], "vector": [1.0, 2.0]}])
    there = np.concatenate([split.inputs["vector"] for split in data.splits.values()])
    assert abs(float(there.mean())) < 0.2


def test_lists_and_structs_are_dropped_by_their_own_name(tmp_path: Path) -> None:
    source = parquet(tmp_path / "t.parquet", nested())
    values: dict[str, Any] = {"drop_columns": ["vector", "place"], "columns": {"fixed": "drop"}}
    data = both_ways(tmp_path, source, target="y", encode={"number": "standard"}, **values)
    assert [tensor.name for tensor in data.inputs] == ["features"]
    assert data.inputs[0].shape == (-1, 1)


def test_lists_of_other_lengths_in_another_file_are_left_out_of_all(tmp_path: Path) -> None:
    parquet(tmp_path / "0.parquet", {"a": pa.array(numbers()), "v": pa.array([[1, 2]] * ROWS)})
    parquet(tmp_path / "1.parquet", {"a": pa.array(numbers(3)), "v": pa.array([[1, 2, 3]] * ROWS)})
    source = {"kind": "parquet", "path": str(tmp_path / "*.parquet")}
    data = both_ways(tmp_path, source, target="y", encode={"number": "standard"})
    assert [tensor.shape for tensor in data.inputs] == [(-1, 1)]


def test_nested_json_lines_are_flattened_and_their_lists_left_out(tmp_path: Path) -> None:
    path = tmp_path / "t.jsonl"
    rows = [{"a": number, "b": {"c": WORDS[row], "d": [1, 2]}, "y": row % 2} for row, number in enumerate(numbers())]
    path.write_text("\n".join(map(json.dumps, rows)) + "\n")
    source = {"kind": "jsonl", "path": str(path)}
    both_ways(tmp_path, source, target="y", encode={"number": "standard"})
    transforms = load_transforms(json.loads((tmp_path / "there" / "transforms.json").read_text()))
    assert [column.name for column in transforms.columns] == ["a", "b.c"]  # type: ignore[union-attr]
    flat = [{"a": row["a"], "b.c": row["b"]["c"]} for row in rows[:5]]  # type: ignore[index]
    assert np.array_equal(transforms.apply_rows(rows[:5])["features"], transforms.apply_rows(flat)["features"])


def test_a_bad_column_of_a_frame_is_left_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "frames_of_types.py").write_text(
        "import pandas as pd\nfrom decimal import Decimal\n"
        "def frame():\n"
        "    return pd.DataFrame({'a': [Decimal(n) for n in range(60)], 'b': [b'x'] * 60,\n"
        "                         'k': pd.Categorical(['u', 'v', 'w'] * 20), 'y': [0, 1] * 30})\n"
    )
    monkeypatch.chdir(tmp_path)
    raw = read_source(data_spec({"kind": "python", "function": "frames_of_types:frame"}, target="y"))
    assert raw.rules is not None
    assert raw.rules.roles == {"a": "number", "k": "category"}
    assert any("column 'b' is left out" in note for note in raw.notes)
