"""A class that training never sees, and a split of one class: the cause with its counts, and a remedy that mends it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml

from cluster.errors import DataError
from cluster.spec.remedy import advice
from tests.unit.data_tests.making import check, run_spec, write_table
from trainers.explain import explain

HASHED = {"by_hash": True, "validation": 0.2, "test": 0.2, "calibration": 0.1, "gate": 0.1}


def refused(folder: Path, source: dict[str, Any], **values: Any) -> DataError:
    with pytest.raises(DataError) as caught:
        check(folder / "run", run_spec(source, **{"target": "y", **values}))
    assert caught.value.exit_code == 2
    assert not list((folder / "run").iterdir())
    return caught.value


def adult(shared: Path | None, folder: Path) -> dict[str, Any]:
    """The published files of Adult, or a table whose test file ends its labels in a full stop as that one does."""
    if shared is not None:
        return {"kind": "csv", "path": str(shared / "adult-train.csv"), "test_path": str(shared / "adult-test.csv")}
    paths = [write_table(folder / "train.csv", 300), write_table(folder / "test.csv", 90, seed=1)]
    for path, mark in zip(paths, ("", "."), strict=True):
        text = path.read_text().replace(",y\n", ",income\n").replace(",yes\n", f",>50K{mark}\n")
        path.write_text(text.replace(",no\n", f",<=50K{mark}\n"))
    return {"kind": "csv", "path": str(paths[0]), "test_path": str(paths[1])}


@pytest.mark.parametrize("published", [False, True])
def test_labels_of_a_test_file_that_end_in_a_full_stop_are_named_with_the_line_that_maps_them(
    published: bool, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    source = adult(request.getfixturevalue("shared_data") if published else None, tmp_path)
    error = refused(tmp_path, source, target="income")
    assert "class '>50K.' has" in error.found
    assert "and train has no row of them: '<=50K.' looks like '<=50K', '>50K.' looks like '>50K'" in error.found
    if published:
        assert "class '>50K.' has 3,846 in test" in error.found
    assert error.remedy == (
        'Set data.clean.map_values: {income: {"<=50K.": "<=50K", ">50K.": ">50K"}}.'
    )  # fmt: skip
    assert error.details["unseen"] == ["<=50K.", ">50K."]
    ((path, mapped),) = advice(error.remedy)
    assert path == "data.clean.map_values"
    if not published:
        check(tmp_path / "mended", run_spec(source, target="income", clean={"map_values": mapped}))


def test_explain_says_the_same(tmp_path: Path) -> None:
    source = adult(None, tmp_path)
    path = tmp_path / "spec.yaml"
    path.write_text(yaml.safe_dump({"version": 1, "data": {"source": source, "target": "income"}}))
    with pytest.raises(DataError) as caught:
        explain(path, [])
    assert caught.value.message == refused(tmp_path, source, target="income").message


def test_past_memory_says_the_same(tmp_path: Path) -> None:
    source = adult(None, tmp_path)
    split = {**HASHED, "test": 0.0}
    here = refused(tmp_path, source, target="income", split=split)
    past = refused(tmp_path, source, target="income", split=split, memory_bytes=1)
    assert (here.found, here.remedy) == (past.found, past.remedy)
    assert "looks like" in here.found


def test_a_map_that_is_there_is_kept_in_the_line_that_is_printed(tmp_path: Path) -> None:
    mapped = {"<=50K.": "<=50K"}
    error = refused(tmp_path, adult(None, tmp_path), target="income", clean={"map_values": {"income": mapped}})
    assert advice(error.remedy)[0][1] == {"income": {**mapped, ">50K.": ">50K"}}


def test_a_class_that_looks_like_no_other_can_be_left_out(tmp_path: Path) -> None:
    source = adult(None, tmp_path)
    lines = Path(source["test_path"]).read_text().replace("K.", "K").splitlines(keepends=True)
    Path(source["test_path"]).write_text("".join(lines) + "40,1,red,retired\n")
    error = refused(tmp_path, source, target="income")
    assert "class 'retired' has 1 in test, and train has no row of it" in error.found
    mapped = dict(advice(error.remedy))["data.clean.map_values"]
    assert mapped == {"income": {"retired": ""}}
    check(tmp_path / "mended", run_spec(source, target="income", clean={"map_values": mapped}))


def table(path: Path, rows: list[str], header: str = "a,b,y") -> dict[str, Any]:
    path.write_text("\n".join([header, *rows]) + "\n")
    return {"kind": "csv", "path": str(path)}


OFTEN = [f"{i},{i * 7 % 50},often" for i in range(200)]
SMALL = {"validation": 0.1, "calibration": 0.05, "gate": 0.1, "test": 0.15}
CASES: dict[str, tuple[list[str], str, dict[str, Any], str, str]] = {
    "equal rows": (
        [*OFTEN, *["1,1,rare"] * 20, *["2,2,rare"] * 20], "a,b,y", {"split": SMALL},
        "class 'rare' has 40 rows, of which 2 are different, and equal rows stay in one split", "more different rows"),
    "eight rows over five splits": (
        [*OFTEN, *[f"{i},-5,rare" for i in range(8)]], "a,b,y", {"split": SMALL},
        "class 'rare' has 8 rows for 5 splits, and calibration gets fewer than one of them",
        "raise data.split.calibration"),
    "not stratified": (
        [*OFTEN, *[f"{i},-5,rare" for i in range(8)]], "a,b,y", {"split": {**SMALL, "stratify": False}},
        "class 'rare' has 8 rows, and the rows are not stratified", "Set data.split.stratify: true."),
    "groups": (
        [f"{i},g{i // 20},{'rare' if i // 20 < 2 else 'often'}" for i in range(200)], "a,g,y",
        {"split": {**SMALL, "group": "g"}}, "class 'rare' has 40 rows in 2 groups", "Give more groups of it"),
    "by time": (
        [f"{i},{i * 7 % 50},{'rare' if i < 40 else 'often'}" for i in range(200)], "t,b,y",
        {"split": {**SMALL, "time": "t"}}, "rows go into the splits by 't'", "leave data.split.time out"),
    "by a column": (
        [f"{i},{'train' if i < 50 else 'test'},{i % 2 if i < 50 else 1}" for i in range(90)], "a,s,y",
        {"split": {"column": "s"}}, "all 40 rows of test are of class '1': column 's' says so", "rows of each class"),
    "by hash": (
        [*OFTEN, "1,-1,rare", "2,-2,rare"], "a,b,y", {"split": HASHED},
        "class 'rare' has 2 rows, and each row's own hash says its split", "Give more rows of it"),
}  # fmt: skip


@pytest.mark.parametrize("case", CASES)
def test_a_split_of_one_class_says_its_cause_and_what_is_not_yet_in_force(case: str, tmp_path: Path) -> None:
    rows, header, values, cause, remedy = CASES[case]
    error = refused(tmp_path, table(tmp_path / "t.csv", rows, header), **values)
    assert cause in error.found
    assert remedy in error.remedy


def test_a_split_of_one_class_is_refused_past_memory_too(tmp_path: Path) -> None:
    rows, header, values, cause, _ = CASES["by hash"]
    source = table(tmp_path / "t.csv", rows, header)
    here, past = refused(tmp_path, source, **values), refused(tmp_path, source, **values, memory_bytes=1)
    assert here.message == past.message
    assert cause in here.found


@pytest.mark.parametrize("past", [False, True])
def test_other_words_of_a_split_column_are_mapped_as_the_remedy_says(past: bool, tmp_path: Path) -> None:
    rows = [f"{i},{'learn' if i % 3 else 'test'},{i % 2}" for i in range(90)]
    values: dict[str, Any] = {"split": {"column": "s"}, **({"memory_bytes": 1} if past else {})}
    source = table(tmp_path / "t.csv", rows, "a,s,y")
    error = refused(tmp_path, source, **values)
    ((_, mapped),) = advice(error.remedy)
    assert mapped == {"s": {"learn": "train"}}
    result = check(tmp_path / "mended", run_spec(source, target="y", clean={"map_values": mapped}, **values))
    assert result.facts.to_json()["splits"] == {"train": 60, "test": 30}


def test_a_class_that_only_the_test_file_has_is_not_counted_as_too_few_rows_to_stratify(tmp_path: Path) -> None:
    source = table(tmp_path / "t.csv", [*OFTEN, *[f"{i},-5,rare" for i in range(60)]])
    table(tmp_path / "u.csv", ["1,2,often", "2,3,rare", "3,4,new"])
    error = refused(tmp_path, {**source, "test_path": str(tmp_path / "u.csv")}, split={**SMALL})
    assert "class 'new' has 1 in test" in error.found


def test_a_class_of_arrays_that_training_never_sees_has_no_column_to_map(tmp_path: Path) -> None:
    targets = np.array(["a"] * 60 + ["b"] * 60 + ["c"])
    np.savez(tmp_path / "a.npz", x=np.random.default_rng(0).normal(size=(121, 3)), y=targets)
    source = {"kind": "numpy", "inputs": f"{tmp_path}/a.npz:x", "targets": f"{tmp_path}/a.npz:y"}
    split = {**HASHED, "validation": 0.5, "seed": 1}  # puts the one row of c into validation
    error = refused(tmp_path, source, split=split, target="target")
    assert "class 'c' has 1 in validation, and train has no row of it: class 'c' has 1 row, and" in error.found
    assert "map_values" not in error.remedy
