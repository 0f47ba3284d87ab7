"""Rows that nobody has seen: made where they can be, else a sentence in the check stage with the class and its rows."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from cluster.errors import DataError
from tests.unit.data_tests.making import check, prepare, run_spec
from trainers.data.shards import open_prepared

SPLIT = {"validation": 0.1, "calibration": 0.05, "gate": 0.1, "test": 0.1}


def write(path: Path, columns: dict[str, Any]) -> dict[str, Any]:
    rows = [",".join(map(str, row)) for row in zip(*columns.values(), strict=True)]
    path.write_text("\n".join([",".join(columns), *rows]) + "\n")
    return {"kind": "csv", "path": str(path)}


def categories(rows: int = 400) -> dict[str, Any]:
    """Categories alone, with holes; the rare class prefers one of each."""
    rng = np.random.default_rng(0)
    rare = np.arange(rows) % 8 == 0
    color = np.where(rare & (rng.random(rows) < 0.8), "red", rng.choice(["red", "blue", "green", "?"], rows))
    shape = np.where(rare & (rng.random(rows) < 0.8), "s1", rng.choice([f"s{i}" for i in range(9)], rows))
    part = np.where(np.arange(rows) % 5 == 0, "test", "train")
    return {"color": color, "shape": shape, "part": part, "y": np.where(rare, "rare", "often")}


def refused(folder: Path, source: dict[str, Any], **values: Any) -> DataError:
    with pytest.raises(DataError) as caught:
        check(folder / "run", run_spec(source, **{"target": "y", "split": SPLIT, **values}))
    return caught.value


def test_categories_alone_are_balanced_by_rows_of_whole_categories(tmp_path: Path) -> None:
    source = write(tmp_path / "t.csv", categories())
    common: dict[str, Any] = {"target": "y", "split": {"column": "part"}}
    spec = run_spec(source, **common, balance={"method": "smotenc"})
    prepare(tmp_path / "run", spec)
    data = open_prepared(tmp_path / "run")
    train = data.splits["train"]
    counts = np.bincount(train.targets)
    assert counts[0] == counts[1]
    facts = data.facts["balance"]
    assert facts["after"] == {"often": counts[0], "rare": counts[1]}
    assert facts["before"]["rare"] < facts["before"]["often"] == counts[0]
    assert len(train) == check(tmp_path / "again", spec).resolved.data.num_rows_train
    prepare(tmp_path / "plain", run_spec(source, **common))
    before = open_prepared(tmp_path / "plain").splits["train"]
    features, old = np.array(train.inputs["features"]), np.array(before.inputs["features"])
    assert np.array_equal(features[: len(before)], old)
    new = features[len(before) :]
    assert len(new) > 100
    assert set(np.unique(new)) == {0.0, 1.0}
    assert np.all(new.sum(axis=1) == 2)  # one color or none that is known, and one shape
    rare = old[before.targets == 1].mean(axis=0)
    assert np.abs(new.mean(axis=0) - rare).max() < 0.35  # new rows look like those of their class, not like all rows
    assert np.corrcoef(new.mean(axis=0), rare)[0, 1] > 0.9


def numbers(rows: int = 240, rare: int = 40, *, apart: float = 0.0) -> dict[str, Any]:
    rng = np.random.default_rng(0)
    is_rare = np.arange(rows) < rare
    return {
        "a": (rng.normal(size=rows) + apart * is_rare).round(4),
        "b": (rng.normal(size=rows) + apart * is_rare).round(4),
        "y": np.where(is_rare, "rare", "often"),
    }


@pytest.mark.parametrize("method", ["smote", "borderline_smote", "adasyn", "smote_under"])
def test_too_few_neighbors_name_the_class_its_rows_and_the_key(method: str, tmp_path: Path) -> None:
    source = write(tmp_path / "t.csv", numbers())
    error = refused(tmp_path, source, balance={"method": method, "neighbors": 30})
    assert "class 'rare' has 26 training rows, and data.balance.neighbors is 30" in error.found
    assert error.remedy == "Set data.balance.neighbors: 25 or fewer, or data.balance.method: over."
    check(tmp_path / "fits", run_spec(source, target="y", split=SPLIT, balance={"method": method, "neighbors": 25}))


def test_a_class_of_one_row_is_not_told_to_have_a_neighbor(tmp_path: Path) -> None:
    columns = {**numbers(60, 20), "s": ["train"] * 60}
    columns["y"] = np.where(np.arange(60) == 3, "one", columns["y"])
    columns["s"][-6:], columns["s"][10:14] = ["test"] * 6, ["test"] * 4
    source = write(tmp_path / "t.csv", columns)
    error = refused(tmp_path, source, split={"column": "s"}, balance={"method": "smote", "neighbors": 1})
    assert "class 'one' has 1 training row, and data.balance.neighbors is 1" in error.found
    assert error.remedy == "Set data.balance.method: over."


def test_a_class_that_gets_no_new_rows_needs_no_neighbors(tmp_path: Path) -> None:
    source = write(tmp_path / "t.csv", numbers(240, 120))
    check(tmp_path / "run", run_spec(source, target="y", split=SPLIT, balance={"method": "smote", "neighbors": 200}))


def test_what_imbalanced_learn_refuses_is_a_sentence(tmp_path: Path) -> None:
    """ADASYN divides by the number of neighbors of other classes, which is 0 where classes lie apart."""
    source = write(tmp_path / "t.csv", numbers(apart=50.0))
    error = refused(tmp_path, source, balance={"method": "adasyn"})
    assert "class 'rare' has 26 of 156 training rows, and imbalanced-learn says: Not any neigbours" in error.found
    assert "Set data.balance.method: over" in error.remedy
    assert error.exit_code == 2


@pytest.mark.parametrize("method", ["smote", "over", "class_weights"])
def test_a_quantity_has_no_classes_and_the_check_stage_says_so(method: str, tmp_path: Path) -> None:
    columns = numbers()
    source = write(tmp_path / "t.csv", {**columns, "y": columns["a"] * 3})
    assert "the task is regression" in refused(tmp_path, source, balance={"method": method}).found


def test_token_ids_make_no_rows_and_the_check_stage_says_so(tmp_path: Path) -> None:
    columns = {**numbers(), "text": [f"some words of row number {i} and more" for i in range(240)]}
    error = refused(
        tmp_path, write(tmp_path / "t.csv", columns), balance={"method": "smote"}, encode={"text": "token_ids"}
    )
    assert "the model takes token ids" in error.found
