"""A column that determines the target is found however the file is sorted; row numbers are not texts."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from tests.unit.data_tests.making import data_spec
from trainers.data.quality import label_noise
from trainers.data.quality.check_files import check_batches
from trainers.data.quality.findings import Finding
from trainers.data.quality.leaks import by_alphabet
from trainers.data.quality.report import check_table
from trainers.data.read.columns import to_texts
from trainers.data.read.sources import read_source

ROWS = 600
WORDS = ["free", "win", "meet", "home", "cash", "late", "lunch", "prize", "call", "soon", "text", "claim"]


@pytest.fixture(autouse=True)
def small_forest(monkeypatch: pytest.MonkeyPatch) -> None:
    """The forest that judges labels takes most of a report's time; its size is not what is tested here."""
    monkeypatch.setattr(label_noise, "TREES", 20)


def both(columns: dict[str, Any], target: str | None = "y") -> dict[tuple[str, str], Finding]:
    """The findings in memory; those of a stream must be the same."""
    table = pa.table(columns)
    here = {(item.rule, item.column): item for item in check_table(table, target).findings}
    parts = [table.slice(0, 250), table.slice(250, 200), table.slice(450)]
    there = {(item.rule, item.column): item for item in check_batches(parts, target).findings}
    assert {key: (item.text, item.fix) for key, item in here.items()} == {
        key: (item.text, item.fix) for key, item in there.items()
    }
    return here


def messages(rows: int = ROWS, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Texts of which some words tell the class to three in four, and the labels."""
    rng = np.random.default_rng(seed)
    y = rng.choice(["ham", "spam"], rows)
    texts = []
    for index in range(rows):
        first = WORDS[:6] if (y[index] == "spam") == (rng.random() < 0.75) else WORDS[6:]
        texts.append(" ".join([*rng.choice(first, 4), *rng.choice(WORDS, 3), f"n{index}"]))
    return np.array(texts), y


@pytest.mark.parametrize("how", ["numbers", "stepped", "backwards", "texts", "times"])
def test_an_index_of_a_file_that_is_sorted_by_its_target_is_a_leak(how: str) -> None:
    texts, y = messages()
    order = np.argsort(y, kind="stable")
    index = np.arange(ROWS)
    columns = {
        "numbers": index, "stepped": index * 10 + 7, "backwards": ROWS - index,
        "texts": np.array([f"row{i:05}" for i in index]), "times": index * 0.37 + 5.1,
    }  # fmt: skip
    found = both({"index": columns[how], "text": texts[order], "y": y[order]})
    assert found["leakage", "index"].severity == "error"
    assert "sorted by 'y'" in found["leakage", "index"].text
    assert ("leakage", "text") not in found  # its codes follow the rows, its words do not
    shuffled = np.random.default_rng(1).permutation(ROWS)
    again = both({"index": columns[how][shuffled], "text": texts[order][shuffled], "y": y[order][shuffled]})
    assert again["leakage", "index"].text == found["leakage", "index"].text
    plain = both({"index": columns[how], "text": texts, "y": y})
    assert ("leakage", "index") not in plain


def test_the_target_under_another_name_is_found_in_a_sorted_file() -> None:
    y = np.sort(np.random.default_rng(0).choice(["a", "b", "c"], ROWS))
    other = np.where(y == "a", 3, np.where(y == "b", 1, 2))
    found = both({"copy": other, "noise": np.random.default_rng(1).normal(size=ROWS), "y": y})
    assert {key for key in found if key[0] == "leakage"} == {("leakage", "copy")}


@pytest.mark.parametrize("step", [1, 2, 10, 1000])
def test_row_numbers_in_steps_are_identifiers_and_measures_are_not(step: int) -> None:
    rng = np.random.default_rng(0)
    y = rng.choice(["a", "b"], ROWS)
    found = both({
        "id": rng.permutation(ROWS) * step + 3, "price": rng.permutation(50_000)[:ROWS] * step,
        "x": rng.normal(size=ROWS), "y": y,
    })  # fmt: skip
    assert {column for rule, column in found if rule == "identifier"} == {"id"}
    steps = f" in steps of {step}" if step > 1 else ""
    assert found["identifier", "id"].text == f"a running number{steps}: each row has a value of its own"


def test_a_column_without_a_name_has_a_remedy_that_leaves_it_out(tmp_path: Path) -> None:
    y = np.random.default_rng(0).choice(["a", "b"], ROWS)
    found = both({"": np.arange(ROWS), "x": np.random.default_rng(1).normal(size=ROWS), "y": y})
    assert found["identifier", ""].fix == 'data.drop_columns: [""]'
    (tmp_path / "t.csv").write_text(",x,y\n" + "".join(f"{i},{i * 7 % 13},{'ab'[i % 2]}\n" for i in range(60)))
    raw = read_source(data_spec({"kind": "csv", "path": str(tmp_path / "t.csv")}, target="y", drop_columns=[""]))
    assert raw.rules is not None
    assert list(raw.rows.values) == ["x"]


def test_a_text_that_is_the_only_feature_is_no_identifier_and_no_judge_of_labels() -> None:
    texts, y = messages(1_500)
    found = both({"text": texts, "y": y})
    assert {rule for rule, _ in found} == set()
    sizes = np.array([len(text) for text in texts])
    assert ("label_noise", "y") not in both({"text": texts, "size": sizes, "late": sizes % 7, "y": y})


def test_an_identifier_that_is_the_only_feature_is_not_told_to_be_left_out() -> None:
    y = np.random.default_rng(0).choice(["a", "b"], ROWS)
    code = both({"code": np.array([f"k{i * 7919 % 100003}" for i in range(ROWS)]), "y": y})["identifier", "code"]
    assert "there is no other feature" in code.text
    assert code.fix == "data.columns.code: text"
    assert both({"number": np.arange(ROWS), "y": y})["identifier", "number"].fix == "give the file more columns"


def test_outliers_of_many_columns_are_one_finding_with_one_remedy() -> None:
    rng = np.random.default_rng(0)
    columns = {f"c{i}": rng.standard_cauchy(ROWS).round(4) for i in range(21)}
    found = both({**columns, "y": rng.choice(["a", "b"], ROWS)})
    assert [key for key in found if key[0] == "outliers"] == [("outliers", "")]
    one = found["outliers", ""]
    assert one.text.startswith("21 columns have values beyond 1.5 IQR")
    assert one.text.endswith("and 16 more")
    assert one.fix == "data.clean.clip_iqr: 1.5"
    assert set(one.evidence["columns"]) == set(columns)
    assert all(each["count"] > 0 for each in one.evidence["columns"].values())
    alone = both({"c0": columns["c0"], "x": rng.uniform(size=ROWS), "y": rng.choice(["a", "b"], ROWS)})
    assert alone["outliers", "c0"].evidence["count"] == one.evidence["columns"]["c0"]["count"]


def test_texts_are_numbered_by_the_alphabet_wherever_they_stand() -> None:
    from cluster.bundle.transforms import Column

    texts = to_texts(Column(name="a", kind="text"), pa.chunked_array([["pear", None, "apple", "pear", "fig"]]))
    assert by_alphabet(texts).tolist() == [2, -1, 0, 2, 1]
