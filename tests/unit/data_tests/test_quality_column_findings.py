"""Hidden missing values, dates, near-duplicates and wrong labels are found where they are, and nowhere else."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow as pa

from tests.unit.data_tests.making import data_spec
from trainers.data.quality.report import check_table
from trainers.data.read.sources import read_source

ROWS = 600


def base() -> dict[str, np.ndarray]:
    rng = np.random.default_rng(3)
    a = rng.normal(size=ROWS)
    return {"a": a, "b": rng.normal(size=ROWS), "y": np.where(a > 0, "up", "down")}


def found(columns: dict, target: str | None = None) -> dict:
    return {(item.rule, item.column): item for item in check_table(pa.table(columns), target).findings}


def test_a_repeated_sentinel_far_from_all_values_is_a_hidden_missing_value() -> None:
    income = np.abs(np.random.default_rng(0).normal(20, 5, ROWS))
    near = np.where(np.arange(ROWS) % 9 == 0, 99.0, np.linspace(0, 98, ROWS))  # 99 continues the range
    findings = found({"income": np.where(np.arange(ROWS) % 50 == 0, -999.0, income), "near": near})
    assert findings["hidden_missing", "income"].evidence == {"value": -999.0, "count": 12}
    assert ("hidden_missing", "near") not in findings
    alone = np.where(np.arange(ROWS) == 7, -999.0, income)
    assert ("hidden_missing", "income") not in found({"income": alone})


def test_the_remedy_of_a_hidden_missing_value_makes_it_missing(tmp_path: Path) -> None:
    path = tmp_path / "t.csv"
    path.write_text("a,b,y\n" + "".join(f"{-999 if i % 20 == 0 else i % 7},{i},{i % 2}\n" for i in range(60)))
    raw = read_source(data_spec({"kind": "csv", "path": str(path)}, target="y"))
    fixed = data_spec({"kind": "csv", "path": str(path)}, target="y", clean={"map_values": {"a": {"-999": ""}}})
    mended = read_source(fixed)
    assert raw.rules is not None
    assert mended.rules is not None
    assert np.isnan(mended.rows.values["a"]).sum() == 3
    assert not np.isnan(raw.rows.values["a"]).any()
    columns = {"a": pa.array([str(-999 if i % 20 == 0 else i % 7) for i in range(60)])}
    assert found(columns)["hidden_missing", "a"].fix == 'data.clean.map_values: {a: {"-999": ""}}'
    assert "null" in found({"a": pa.array([-999 if i % 20 == 0 else i % 7 for i in range(60)])})[
        "hidden_missing", "a"
    ].fix  # fmt: skip


def test_dates_in_other_forms_than_iso_are_named_and_plain_numbers_are_not() -> None:
    days = [f"{1 + i % 28:02}/{1 + i % 12:02}/2026" for i in range(ROWS)]
    whole = [20260100 + 1 + i % 28 for i in range(ROWS)]
    iso = [f"2026-01-{1 + i % 28:02}" for i in range(ROWS)]
    findings = found({"days": days, "whole": whole, "iso": iso, "plain": np.arange(ROWS) + 20_000_000})
    assert {column for rule, column in findings if rule == "date_like"} == {"days", "whole"}


def test_a_scaled_or_renamed_column_is_a_near_duplicate_and_a_related_one_is_not() -> None:
    columns = base()
    rng = np.random.default_rng(5)
    letters = rng.choice(["p", "q", "r"], ROWS)
    columns["b"][3] = np.inf  # is left out, and is no reason to fail
    columns |= {
        "scaled": columns["a"] * -3 + 7,
        "noisy": columns["a"] + rng.normal(0, 0.3, ROWS),
        "letters": letters,
        "renamed": np.where(letters == "p", "one", np.where(letters == "q", "two", "three")),
        "merged": np.where(letters == "p", "one", "other"),
    }
    twins = {column: item.evidence["column"] for (rule, column), item in found(columns).items() if "near" in rule}
    assert twins == {"scaled": "a", "renamed": "letters"}


def test_flipped_labels_are_estimated_and_named_and_clean_or_random_ones_are_not() -> None:
    columns = base()
    columns["c"] = columns["a"] + np.random.default_rng(1).normal(0, 0.2, ROWS)
    flipped = columns["y"].copy()
    rows = np.flatnonzero(np.abs(columns["a"]) > 1.0)[::6]
    flipped[rows] = np.where(flipped[rows] == "up", "down", "up")
    noise = found({**columns, "y": flipped}, "y")["label_noise", "y"].evidence
    assert abs(noise["share"] - len(rows) / ROWS) < 0.02
    assert {example["row"] for example in noise["examples"]} <= set(rows.tolist())
    random = np.random.default_rng(2).choice(["up", "down"], ROWS)
    for labels in (columns["y"], random):
        assert ("label_noise", "y") not in found({**columns, "y": labels}, "y")
