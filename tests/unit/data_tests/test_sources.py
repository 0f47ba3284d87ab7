"""Groups stay whole through the stages, and URLs are read as local files are."""

from __future__ import annotations

from pathlib import Path

import fsspec
import numpy as np
import pytest

from cluster.errors import DataError
from tests.unit.data_tests.making import check, data_spec, prepare, run_spec, write_table
from trainers.data.check import make_report
from trainers.data.read.raw import ITEMS
from trainers.data.row_plan import plan_rows
from trainers.data.shards import open_prepared

SPLIT = {"validation": 0.2, "calibration": 0, "gate": 0, "test": 0.2}


def write_groups(path: Path, *, hole: bool = False) -> dict:
    rng = np.random.default_rng(0)
    lines = ["patient,v,y"]
    for row in range(400):
        patient = "" if hole and row == 9 else f"p{rng.integers(0, 50)}"
        lines.append(f"{patient},{rng.normal():.4f},{row % 2}")
    path.write_text("\n".join(lines) + "\n")
    return {"kind": "csv", "path": str(path)}


def test_a_group_is_never_in_two_splits_and_is_no_feature(tmp_path: Path) -> None:
    source = write_groups(tmp_path / "t.csv")
    plan = plan_rows(data_spec(source, target="y", split={"group": "patient", **SPLIT}))
    patients = np.array([line.split(",")[0] for line in (tmp_path / "t.csv").read_text().splitlines()[1:]])
    homes = [set(patients[rows]) for rows in plan.rows.values()]
    assert len(homes) == 3
    assert len(set.union(*homes)) == sum(len(home) for home in homes) == len(set(patients))
    assert all(abs(len(plan.rows[name]) - 80) <= 16 for name in ("validation", "test"))
    result = prepare(tmp_path / "run", run_spec(source, target="y", split={"group": "patient", **SPLIT}))
    assert result.facts.to_json()["columns"] == {"v": "number"}


def test_a_row_without_a_group_is_refused_with_its_remedy(tmp_path: Path) -> None:
    source = write_groups(tmp_path / "t.csv", hole=True)
    spec = run_spec(source, target="y", split={"group": "patient", **SPLIT})
    with pytest.raises(DataError, match="1 rows have no 'patient'"):
        check(tmp_path / "run", spec)
    clean = {"drop_missing_rows": ["patient"]}
    result = check(tmp_path / "two", run_spec(source, target="y", split={"group": "patient", **SPLIT}, clean=clean))
    assert sum(result.facts.to_json()["splits"].values()) == 399


def test_groups_that_a_test_file_tears_apart_are_said(tmp_path: Path) -> None:
    source = write_groups(tmp_path / "t.csv")
    spec = data_spec({**source, "test_path": source["path"]}, target="y", split={"group": "patient", **SPLIT})
    assert "50 groups of 'patient' have rows in the test file and in the other one" in plan_rows(spec).notes


@pytest.mark.parametrize("scheme", ["memory", "file"])
def test_a_url_gives_the_same_shards_as_the_file_and_is_read_again_when_it_changes(scheme: str, tmp_path: Path) -> None:
    path = write_table(tmp_path / "t.csv")
    url = f"file://{path}"
    if scheme == "memory":
        url = "memory://manta-test/t.csv"
        fsspec.filesystem("memory").pipe("/manta-test/t.csv", path.read_bytes())
    local = check(tmp_path / "a", run_spec({"kind": "csv", "path": str(path)}, target="y"))
    spec = run_spec({"kind": "csv", "path": url}, target="y")
    prepare(tmp_path / "b", spec)
    assert check(tmp_path / "c", spec).resolved.data == local.resolved.data
    assert sum(len(split) for split in open_prepared(tmp_path / "b").splits.values()) == 400
    longer = write_table(tmp_path / "t.csv", 500)
    if scheme == "memory":
        fsspec.filesystem("memory").pipe("/manta-test/t.csv", longer.read_bytes())
    assert check(tmp_path / "d", spec).resolved.data.num_rows == 500


def test_a_url_pattern_joins_its_files_and_a_wrong_address_is_one_sentence(tmp_path: Path) -> None:
    memory = fsspec.filesystem("memory")
    for part in range(2):
        data = write_table(tmp_path / "t.csv", 200, seed=part).read_bytes()
        memory.pipe(f"/manta-parts/{part}.csv", data)
    joined = check(tmp_path / "a", run_spec({"kind": "csv", "path": "memory://manta-parts/*.csv"}, target="y"))
    assert joined.resolved.data.num_rows == 400
    for url, words in (
        ("memory://manta-parts/none.csv", "there is no such file"),
        ("memory://manta-parts/none*.csv", "no file fits the pattern"),
        ("nosuch://x/y.csv", "Protocol not known: nosuch"),
    ):
        with pytest.raises(DataError, match=words):
            check(tmp_path / "b", run_spec({"kind": "csv", "path": url}, target="y"))


def test_an_error_in_a_fetched_file_names_the_url_and_not_the_local_copy(tmp_path: Path) -> None:
    memory = fsspec.filesystem("memory")
    memory.pipe("/manta-bad/0.csv", write_table(tmp_path / "t.csv", 60).read_bytes())
    for content, words in (
        (b"age,size,color,y\n1,2\n", "Expected 4 columns"),
        (b"age,size,colour,y\n1,2,red,no\n", "these columns are in one of them only: color, colour"),
        (b"", "the file is empty"),
        (b"age\x00", "NUL bytes"),
    ):
        memory.pipe("/manta-bad/1.csv", content)
        for url in ("memory://manta-bad/*.csv", "memory://manta-bad/1.csv"):
            if "one of them" in words and "*" not in url:
                continue
            with pytest.raises(DataError, match=words) as caught:
                check(tmp_path / "run", run_spec({"kind": "csv", "path": url}, target="y"))
            assert "memory://manta-bad/1.csv" in caught.value.message
            assert "/tmp" not in caught.value.message
    memory.pipe("/manta-bad/1.parquet", b"PAR1 and then nothing")
    for kind, name in (("parquet", "1.parquet"), ("jsonl", "1.csv")):
        with pytest.raises(DataError, match=f"memory://manta-bad/{name}"):
            check(tmp_path / "run", run_spec({"kind": kind, "path": f"memory://manta-bad/{name}"}, target="y"))


@pytest.mark.parametrize("memory_bytes", [0, 1 << 30], ids=["in one pass", "in memory"])
def test_the_quality_report_names_the_url_too(memory_bytes: int) -> None:
    fsspec.filesystem("memory").pipe("/manta-report/t.csv", b"a,b,y\n1,2\n")
    url = "memory://manta-report/t.csv"
    with pytest.raises(DataError, match=url):
        make_report(url, None, test=None, memory_bytes=memory_bytes)


def test_arrays_and_idx_files_are_read_from_urls(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    images, labels = rng.integers(0, 255, (60, 4, 4), dtype=np.uint8), (np.arange(60) % 2).astype(np.uint8)
    np.savez(tmp_path / "a.npz", x=images, y=labels)
    for name, array in (("x.idx", images), ("y.idx", labels)):
        header = bytes([0, 0, 8, array.ndim]) + b"".join(size.to_bytes(4, "big") for size in array.shape)
        (tmp_path / name).write_bytes(header + array.tobytes())
    memory = fsspec.filesystem("memory")
    for path in tmp_path.iterdir():
        memory.pipe(f"/manta-arrays/{path.name}", path.read_bytes())
    for kind, values in (
        ("numpy", {"inputs": "{}/a.npz:x", "targets": "{}/a.npz:y"}),
        ("idx", {"images": "{}/x.idx", "labels": "{}/y.idx"}),
    ):
        found = [
            plan_rows(data_spec({"kind": kind, **{key: text.format(home) for key, text in values.items()}})).raw
            for home in (str(tmp_path), "memory://manta-arrays")
        ]
        assert found[0].digest == found[1].digest
        assert np.array_equal(found[0].rows.values[ITEMS], found[1].rows.values[ITEMS])
    memory.pipe("/manta-arrays/x.idx", b"\x00\x00\x08")
    with pytest.raises(DataError, match=r"memory://manta-arrays/x\.idx as IDX"):
        plan_rows(
            data_spec({"kind": "idx", "images": "memory://manta-arrays/x.idx", "labels": str(tmp_path / "y.idx")})
        )
