"""What the quality report says of numbers: outliers without a spread, quantities as targets, numbers that are names."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from cluster.errors import DataError
from tests.unit.data_tests.making import check, run_spec
from trainers.data.quality.check_files import check_batches
from trainers.data.quality.findings import Finding
from trainers.data.quality.report import check_table

ROWS = 4_000


def both(columns: dict[str, Any], target: str = "y") -> dict[tuple[str, str], Finding]:
    """The findings in memory; those of a stream must be the same."""
    table = pa.table(columns)
    here = {(item.rule, item.column): item for item in check_table(table, target).findings}
    parts = [table.slice(0, 1_700), table.slice(1_700)]
    there = {(item.rule, item.column): item for item in check_batches(parts, target).findings}
    assert {key: item.text for key, item in here.items()} == {key: item.text for key, item in there.items()}
    return here


def test_values_beside_equal_quartiles_are_outliers_with_a_remedy_that_does_something() -> None:
    """`data.clean.clip_iqr` leaves a column without spread alone."""
    rng = np.random.default_rng(0)
    gain = np.where(rng.random(ROWS) < 0.08, rng.integers(100, 99_999, ROWS), 0).astype(np.float64)
    flag = (rng.random(ROWS) < 0.08).astype(np.float64)
    wild = rng.standard_cauchy(ROWS)
    columns = {"gain": gain, "flag": flag, "wild": wild, "y": rng.choice(["n", "p"], ROWS)}
    found = both(columns)
    count = int((gain != 0).sum())
    assert found["outliers", "gain"].text == f"{count} values differ from both quartiles, which are 0"
    assert found["outliers", "gain"].fix == "data.encode.number: quantile"
    assert found["outliers", "wild"].fix == "data.clean.clip_iqr: 1.5"
    assert ("outliers", "flag") not in found
    facts = check_table(pa.table(columns), "y").columns
    assert (facts["gain"]["outliers"], facts["flag"]["outliers"]) == (count, 0)


def ratings(rng: np.random.Generator, users: np.ndarray, films: np.ndarray) -> np.ndarray:
    taste, worth = rng.normal(size=300), rng.normal(size=400)
    value = 3.3 + 0.6 * taste[users] + 0.7 * worth[films] + 0.5 * rng.normal(size=len(users))
    return np.clip(np.round(value * 2) / 2, 0.5, 5.0)


def film_table() -> dict[str, Any]:
    rng = np.random.default_rng(0)
    users, films = rng.integers(0, 300, ROWS), rng.integers(0, 400, ROWS)
    age = rng.integers(18, 80, ROWS)
    y = ratings(rng, users, films) + 0.5 * np.round((age - 50) / 40)
    return {"userId": users + 1, "movieId": films * 37 + 5, "age": age, "noise": rng.integers(0, 90, ROWS), "y": y}


def test_numbers_that_are_names_are_found_with_the_kind_that_they_have() -> None:
    found = both(film_table())
    assert {column for rule, column in found if rule == "codes"} == {"userId", "movieId"}
    finding = found["codes", "movieId"]
    assert finding.fix == "data.columns.movieId: category and data.encode.category: target"
    assert finding.severity == "warning"
    assert "400 different numbers" in finding.text
    assert finding.evidence["own"] > 0.2 > finding.evidence["near"]
    amount = np.where(film_table()["noise"] < 50, 0, film_table()["movieId"])
    assert ("codes", "amount") not in both({**film_table(), "amount": amount}), "an amount that mostly is 0"
    few = both({**film_table(), "userId": film_table()["userId"] % 13})
    assert ("codes", "userId") not in few, "nothing of the target is told by it any more"


def test_numbers_that_name_classes_too() -> None:
    rng = np.random.default_rng(1)
    shop = rng.integers(0, 40, ROWS)
    y = np.where(rng.random(ROWS) < rng.permutation(np.linspace(0.05, 0.95, 40))[shop], "yes", "no")
    hour = rng.integers(0, 24, ROWS)
    found = both({"shop": shop * 3 + 100, "hour": hour, "y": y})
    assert found["codes", "shop"].fix == "data.columns.shop: category"
    assert ("codes", "hour") not in found


def test_a_rating_with_halves_is_a_quantity_and_has_no_classes() -> None:
    found = both(film_table())
    assert not {rule for rule, column in found} & {"class_balance", "label_noise"}
    whole = {**film_table(), "y": np.round(film_table()["y"])}
    assert ("class_balance", "y") in both(whole), "whole numbers are classes, where the spec does not say otherwise"


@pytest.mark.parametrize("past", [False, True])
def test_whole_ratings_that_the_spec_calls_a_quantity_have_no_classes(past: bool, tmp_path: Path) -> None:
    table = {**film_table(), "y": np.round(film_table()["y"])}
    path = tmp_path / "t.csv"
    rows = zip(*(values.tolist() for values in table.values()), strict=True)
    path.write_text("\n".join([",".join(table), *(",".join(map(str, row)) for row in rows)]) + "\n")
    source = {"kind": "csv", "path": str(path)}
    more: dict[str, Any] = {"memory_bytes": 1, "split": {"by_hash": True}} if past else {}
    quality = {"fail_on": ["class_balance", "label_noise"]}
    check(tmp_path / "quantity", run_spec(source, target="y", task="regression", quality=quality, **more))
    with pytest.raises(DataError, match="class_balance"):
        check(tmp_path / "classes", run_spec(source, target="y", quality=quality, **more))
    named = run_spec(source, target="y", task="regression", quality={"fail_on": ["codes"]}, **more)
    with pytest.raises(DataError, match="codes 'movieId'"):
        check(tmp_path / "named", named)
    kinds = {"userId": "category", "movieId": "category"}
    mended = run_spec(source, target="y", task="regression", quality={"fail_on": ["codes"]}, columns=kinds, **more)
    check(tmp_path / "mended", mended)
