"""Bad files and bad columns: one clear sentence each, exit code 2, nothing half-written."""

from __future__ import annotations

import gzip
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.csv as pa_csv
import pyarrow.parquet as pq
import pytest
from PIL import Image

from cluster.errors import DataError
from tests.unit.data_tests.making import check, prepare, run_spec, write_table

ROWS = "".join(f"{index},{index % 7},{'no' if index % 2 else 'yes'}\n" for index in range(60))


def missing(folder: Path) -> None:
    write_table(folder / "tabel.csv")


def folder_there(folder: Path) -> None:
    (folder / "table.csv").mkdir()


def text(content: str | bytes) -> Callable[[Path], None]:
    def write(folder: Path) -> None:
        (folder / "table.csv").write_bytes(content.encode() if isinstance(content, str) else content)

    return write


CASES: dict[str, tuple[Callable[[Path], None], dict, str]] = {
    "missing file, nearest name": (missing, {}, "Did you mean"),
    "a folder": (folder_there, {}, "it is a directory"),
    "empty": (text(""), {}, "the file is empty"),
    "binary": (text(b"a,y\x00\x01\n1,2\n"), {}, "NUL bytes: the file is binary"),
    "header only": (text("a,b,y\n"), {}, "a header and zero rows"),
    "ragged": (text("a,b,y\n1,2,yes\n1,2\n"), {}, "Expected 3 columns, got 2"),
    "wrong delimiter": (text("a;b;y\n1;2;yes\n"), {}, "it has one column: 'a;b;y'"),
    "mixed encodings": (text("a,b,y\n1,é,yes\n".encode() + "2,é,no\n".encode("latin-1")), {}, "line 3 holds the byte"),
    "header repeated": (text("a,b,y\n" + ROWS + "a,b,y\n" + ROWS), {}, "data row 61 repeats the header"),
    "numbers with commas": (
        text("a,b,y\n" + "".join(f'"{i + 1},000",{i},{i % 2}\n' for i in range(60))), {}, "separators of thousands"),
    "numbers mixed with words": (text("a,b,y\n" + ROWS + "n/k,3,yes\n"), {}, "are numbers, but not 'n/k'"),
    "infinite value": (text("a,b,y\n" + ROWS + "inf,3,yes\n"), {}, "column 'a' is infinite in row 60"),
    "column twice": (text("a,a,y\n1,2,yes\n"), {}, "column 'a' is there twice"),
    "no header": (text(ROWS), {}, "The first line may be a row: set data.source.header: false"),
    "no header, a value twice": (text("7,7,yes\n" + ROWS), {}, "The first line may be a row"),
    "target not there": (text("a,b,label\n" + ROWS), {"target": "labell"}, "Did you mean 'label'?"),
    "spec names an absent column": (
        text("a,b,y\n" + ROWS), {"drop_columns": ["bb"]}, "no column 'bb', which data.drop_columns names"),
    **{
        f"{place} names an absent column": (
            text("alpha,b,y\n" + ROWS), values, f"no column 'alpa', which data.{place} names")
        for place, values in (
            ("columns", {"columns": {"alpa": "number"}}),
            ("clean.map_values", {"clean": {"map_values": {"alpa": {"a": "b"}}}}),
            ("clean.drop_missing_rows", {"clean": {"drop_missing_rows": ["alpa"]}}),
            ("split.group", {"split": {"group": "alpa"}}),
            ("split.time", {"split": {"time": "alpa"}}),
            ("split.column", {"split": {"column": "alpa"}}),
        )
    },
    "the nearest name": (text("alpha,b,y\n" + ROWS), {"drop_columns": ["alpa"]}, "Did you mean 'alpha'?"),
    "constant target": (text("a,b,y\n" + "1,2,yes\n2,3,yes\n"), {}, "all 2 rows have the value 'yes'"),
    "target is an identifier": (
        text("a,b,y\n" + "".join(f"{i},{i % 3},id{i}\n" for i in range(60))), {}, "60 different values in 60 rows"),
    "class with one row": (text("a,b,y\n" + ROWS + "5,5,rare\n"), {}, "class 'rare' has 1 row"),
    "one class in a split": (
        text("a,b,s,y\n" + "".join(f"{i},{i % 7},{'train' if i < 40 else 'test'},{i % 2 if i < 40 else 1}\n"
                                   for i in range(60))),
        {"split": {"column": "s"}}, "all 20 rows of test are of class '1'"),
    "zero rows after cleaning": (text("a,b,y\n1,2,?\n3,4,\n"), {}, "zero rows are left of 2"),
    "no feature left": (text("a,y\n,yes\n,no\n"), {}, "no feature column is left"),
    "split column with other words": (
        text("a,s,y\n1,learn,yes\n2,test,no\n"), {"split": {"column": "s"}}, "it holds 'learn'"),
}  # fmt: skip


@pytest.mark.parametrize("case", CASES)
def test_a_bad_csv_is_one_clear_sentence(case: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write, values, words = CASES[case]
    write(tmp_path)
    monkeypatch.chdir(tmp_path)
    with pytest.raises(DataError) as caught:
        check(tmp_path / "run", run_spec({"kind": "csv", "path": "table.csv"}, **{"target": "y", **values}))
    assert words in caught.value.message
    assert caught.value.exit_code == 2
    assert not list((tmp_path / "run").iterdir())


def test_a_target_of_many_numbers_that_cannot_be_classes_is_told_how_to_be_a_quantity(tmp_path: Path) -> None:
    rows = [f"{i},{i % 7},{i % 25}" for i in range(200)] + ["1,2,31"]  # a count, with one large value
    (tmp_path / "t.csv").write_text("a,b,y\n" + "\n".join(rows) + "\n")
    source = {"kind": "csv", "path": str(tmp_path / "t.csv")}
    with pytest.raises(DataError, match=r"set data\.task: regression"):
        check(tmp_path / "run", run_spec(source, target="y"))
    assert (
        check(tmp_path / "mended", run_spec(source, target="y", task="regression")).facts.to_json()["data"][
            "num_classes"
        ]
        == 0
    )
    texts = "\n".join(row.rpartition(",")[0] + ",w" + row.rpartition(",")[2] for row in rows)
    (tmp_path / "t.csv").write_text("a,b,y\n" + texts + "\n")
    with pytest.raises(DataError) as caught:
        check(tmp_path / "text", run_spec(source, target="y"))
    assert "regression" not in caught.value.remedy


@pytest.mark.parametrize(
    ("values", "why"),
    [
        (["yes", "no"], "the target holds text"),
        ([1, 2, 3], "the target has 3 different whole numbers, and up to 50 are classes"),
        (list(range(100)), "the target has more than 50 different whole numbers"),
        ([0.5, 1.25, 3.0], "the target holds numbers that are not whole"),
    ],
)
def test_the_task_has_a_reason_in_the_targets_values(values: list, why: str, tmp_path: Path) -> None:
    rows = "".join(f"{i},{i * 7 % 31},{values[i % len(values)]}\n" for i in range(300))
    (tmp_path / "t.csv").write_text("a,b,y\n" + rows)
    source = {"kind": "csv", "path": str(tmp_path / "t.csv")}
    for folder, more in (("memory", {}), ("past", {"memory_bytes": 1, "split": {"by_hash": True}})):
        resolved = check(tmp_path / folder, run_spec(source, target="y", **more)).resolved
        assert next(reason.reason for reason in resolved.reasons if reason.path == "data.task") == why


def test_an_all_missing_column_is_left_out_and_said(tmp_path: Path) -> None:
    (tmp_path / "t.csv").write_text("a,b,y\n" + "".join(f"{i},?,{i % 2}\n" for i in range(60)))
    from trainers.data.read.sources import read_source

    raw = read_source(run_spec({"kind": "csv", "path": str(tmp_path / "t.csv")}, target="y").data)
    assert raw.rules is not None
    assert list(raw.rows.values) == ["a"]
    assert "column 'b' is left out: every value is missing" in raw.notes


def test_a_corrupt_parquet_page_is_found(tmp_path: Path) -> None:
    path = tmp_path / "t.parquet"
    table = pa.table({"a": np.random.default_rng(0).normal(size=5000), "y": np.arange(5000) % 2})
    pq.write_table(table, path, write_page_checksum=True, compression="none", use_dictionary=False)
    data = bytearray(path.read_bytes())
    data[2000] ^= 0xFF
    path.write_bytes(bytes(data))
    with pytest.raises(DataError, match="as Parquet"):
        check(tmp_path / "run", run_spec({"kind": "parquet", "path": str(path)}, target="y"))


def test_json_lines_name_the_bad_line(tmp_path: Path) -> None:
    (tmp_path / "t.jsonl").write_text('{"a": 1, "y": "no"}\n{"a": "x"\n')
    with pytest.raises(DataError, match="as JSON Lines"):
        check(tmp_path / "run", run_spec({"kind": "jsonl", "path": str(tmp_path / "t.jsonl")}, target="y"))


def test_images_of_two_sizes_are_refused_unless_resized(tmp_path: Path) -> None:
    for index in range(20):
        folder = tmp_path / "images" / ("cat" if index % 2 else "dog")
        folder.mkdir(parents=True, exist_ok=True)
        pixels = np.random.default_rng(index).integers(0, 255, (8, 8 if index else 9, 3)).astype(np.uint8)
        Image.fromarray(pixels).save(folder / f"{index}.png")
    source = {"kind": "image_folder", "path": str(tmp_path / "images")}
    with pytest.raises(DataError, match=r"0\.png has 8×9|has 8×9 pixels"):
        check(tmp_path / "run", run_spec(source))
    shares = {"validation": 2, "calibration": 0, "gate": 0, "test": 4}
    result = check(tmp_path / "run", run_spec({**source, "size": [6, 6], "channels": 1}, split=shares))
    assert result.resolved.data.item_shape == (1, 6, 6)
    assert result.resolved.spec.model.family == "cnn"


@pytest.mark.parametrize("damage", ["short", "magic", "gzip"])
def test_a_damaged_idx_file_is_refused(damage: str, tmp_path: Path) -> None:
    header = bytes([0, 0, 8, 3]) + b"".join(size.to_bytes(4, "big") for size in (10, 4, 4))
    data = header + bytes(160)
    path, words = tmp_path / "i.gz", "the header promises shape [10, 4, 4]"
    path.write_bytes(gzip.compress(data[:-1]))
    if damage == "magic":
        path.write_bytes(b"\x01" + data[1:])
        words = "it starts with the bytes 01 00 08 03"
    if damage == "gzip":
        path.write_bytes(gzip.compress(data)[:-9])
        words = "Cannot unpack"
    with pytest.raises(DataError) as caught:
        check(tmp_path / "run", run_spec({"kind": "idx", "images": str(path), "labels": str(path)}))
    assert words in caught.value.message


def test_arrays_with_nan_objects_or_other_lengths_are_refused(tmp_path: Path) -> None:
    good, bad = np.ones((60, 3)), np.ones((60, 3))
    bad[7, 1] = np.nan
    np.savez(tmp_path / "a.npz", good=good, bad=bad, y=np.arange(60) % 2, short=np.arange(59))
    np.save(tmp_path / "o.npy", np.array([{"a": 1}], dtype=object), allow_pickle=True)
    npz = f"{tmp_path}/a.npz"

    def run(inputs: str, targets: str) -> None:
        check(tmp_path / "run", run_spec({"kind": "numpy", "inputs": inputs, "targets": targets}))

    run(f"{npz}:good", f"{npz}:y")
    for inputs, targets, words in (
        (f"{npz}:bad", f"{npz}:y", "1 of 60 rows hold NaN or infinity, the first is row 7"),
        (f"{npz}:good", f"{npz}:short", "60 inputs and 59 targets"),
        (f"{npz}:goood", f"{npz}:y", "no array 'goood'"),
        (npz, f"{npz}:y", "It has good, bad, y, short"),
        (f"{tmp_path}/o.npy", f"{npz}:y", "pickles and are never loaded"),
    ):
        with pytest.raises(DataError) as caught:
            run(inputs, targets)
        assert words in caught.value.message


@pytest.mark.parametrize("past", [False, True])
@pytest.mark.parametrize("kind", ["csv", "parquet"])
def test_infinite_cells_are_found_by_check_with_columns_and_rows(kind: str, past: bool, tmp_path: Path) -> None:
    """All columns at once; rows as they stand in their file, whatever batch they are read in. NaN means missing."""
    rows = 3_000
    a, b = np.random.default_rng(0).normal(size=(2, rows)).round(3)
    a[[7, 2_900]], b[11], a[20] = np.inf, -np.inf, np.nan
    table = pa.table({"a": a, "c": np.arange(rows) % 7, "b": b, "y": np.where(np.arange(rows) % 2 == 0, "n", "p")})
    path = tmp_path / f"t.{kind}"
    if kind == "csv":
        pa_csv.write_csv(table, path)
    else:
        pq.write_table(table, path, row_group_size=1_000)
    more: dict = {"memory_bytes": 1, "split": {"by_hash": True}} if past else {}
    spec = run_spec({"kind": kind, "path": str(path)}, target="y", **more)
    with pytest.raises(DataError) as caught:
        check(tmp_path / "run", spec)
    found = caught.value.found
    assert "column 'b' is infinite in row 11" in found
    assert "column 'a' is infinite in 2 rows: 7, 2,900" in found or (
        past and "column 'a' is infinite in row 7" in found
    )
    mended = run_spec({"kind": kind, "path": str(path)}, target="y", clean={"infinite": "missing"}, **more)
    prepare(tmp_path / "mended", mended)


def test_what_is_infinite_only_once_it_is_encoded_stops_prepare(tmp_path: Path) -> None:
    lines = [f"{1e300 if i == 17 else i},{i % 7},{'ab'[i % 2]}" for i in range(120)]
    (tmp_path / "t.csv").write_text("a,b,y\n" + "\n".join(lines) + "\n")
    spec = run_spec({"kind": "csv", "path": str(tmp_path / "t.csv")}, target="y", encode={"number": "none"})
    with pytest.raises(DataError, match=r"'a' is NaN or infinite once encoded, in row 17"), np.errstate(over="ignore"):
        prepare(tmp_path / "run", spec)
