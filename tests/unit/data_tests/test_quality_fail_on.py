"""`data.quality.fail_on` stops the check stage, and following the remedy lets it pass."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any, get_args

import numpy as np
import pandas as pd
import pytest

import trainers.data
from cluster.errors import DataError, SpecError
from cluster.spec.data import DataSpec, Rule
from cluster.spec.load import override_spec
from cluster.spec.remedy import advice
from tests.unit.data_tests.making import check, context, run_spec
from trainers.data.quality import label_noise
from trainers.data.quality.fail_on import check_quality, check_quality_files
from trainers.data.read.sources import read_source
from trainers.data.stages import check_data


@pytest.fixture(autouse=True)
def small_forest(monkeypatch: pytest.MonkeyPatch) -> None:
    """The forest that judges labels takes most of a report's time; its size is not what is tested here."""
    monkeypatch.setattr(label_noise, "TREES", 10)
    monkeypatch.setattr(label_noise, "ROWS_MAX", 1_000)


def write(path: Path) -> dict:
    rng = np.random.default_rng(0)
    y = rng.choice(["no", "yes"], 200)
    rows = [
        f"{value:.3f},{value * 2:.3f},{'A' if i % 2 else 'a.'},{label}"
        for i, (value, label) in enumerate(zip(rng.uniform(size=200), y, strict=True))
    ]
    path.write_text("\n".join(["v,twice,spelt,y", *rows, rows[0]]) + "\n")
    return {"kind": "csv", "path": str(path)}


def test_named_findings_stop_the_check_stage_and_their_remedies_let_it_pass(tmp_path: Path) -> None:
    source = write(tmp_path / "t.csv")
    asked = {"fail_on": ["near_duplicate", "label_variants", "duplicate_rows"]}
    assert check(tmp_path / "without", run_spec(source, target="y")).resolved is not None
    with pytest.raises(DataError) as caught:
        check(tmp_path / "run", run_spec(source, target="y", quality=asked))
    rules = {finding["rule"] for finding in caught.value.details["findings"]}
    assert rules == {"near_duplicate", "label_variants", "duplicate_rows"}
    assert "near_duplicate 'twice': it says the same as 'v'" in caught.value.message
    assert "data.drop_columns: [twice]" in caught.value.message
    assert caught.value.exit_code == 2
    mended = {"map_values": {"spelt": {"a.": "A"}}, "drop_duplicates": True}
    passed = run_spec(source, target="y", quality=asked, clean=mended, drop_columns=["twice"])
    assert check(tmp_path / "mended", passed).resolved is not None


def plant(path: Path) -> dict:
    """A file with every finding that has a line of the spec for a remedy, in columns with odd names too."""
    rng = np.random.default_rng(0)
    rows = 400
    y = rng.choice(["no", "yes"], rows, p=[0.96, 0.04]).astype(object)
    y[:8] = "yes."
    v = rng.uniform(size=rows).round(4)
    columns = {
        "": np.arange(rows), "v": v, "a, b": v * 2, "same": np.full(rows, 3), "no": rng.choice(["7", "x"], rows),
        "spelt: y": rng.choice(["A", "a."], rows), "heavy": rng.standard_cauchy(rows).round(3),
        "gaps": np.where(np.arange(rows) % 40 == 0, -999, rng.integers(0, 9, rows)),
        "holes": np.full(rows, ""), "copy": np.where(y == "no", 0, np.where(y == "yes", 1, 2)), "y": y,
    }  # fmt: skip
    frame = pd.DataFrame(columns)
    pd.concat([frame, frame[:1]]).to_csv(path, index=False)
    return {"kind": "csv", "path": str(path)}


@pytest.mark.parametrize("past", [False, True], ids=["memory", "past"])
def test_following_any_remedy_lets_its_finding_pass(past: bool, tmp_path: Path) -> None:
    spec: dict[str, Any] = {"target": "y", "split": {"by_hash": True}, **({"memory_bytes": 1} if past else {})}
    source = plant(tmp_path / "t.csv")
    with pytest.raises(DataError) as caught:
        check(tmp_path / "run", run_spec(source, quality={"fail_on": "info"}, **spec))
    findings = [finding for finding in caught.value.details["findings"] if advice(finding["fix"])]
    assert {finding["rule"] for finding in findings} >= {
        "class_balance", "constant", "duplicate_rows", "hidden_missing", "identifier", "label_variants", "leakage",
        "missing", "mixed_types", "near_duplicate", "outliers",
    }  # fmt: skip
    for finding in findings:
        path, value = advice(finding["fix"])[-1]
        asked = run_spec(source, quality={"fail_on": [finding["rule"]]}, **spec)
        mended = override_spec(asked, {path: value}).data
        left = [each for each in _stopping(mended) if each["column"] == finding["column"]]
        assert left == [], finding["fix"]


def _stopping(spec: DataSpec) -> list[dict[str, Any]]:
    try:
        if spec.memory_bytes is not None:
            check_quality_files(spec)
        else:
            read_source(spec, lambda table, fixed: check_quality(spec, table, fixed))
    except DataError as error:
        return list(error.details.get("findings", []))
    return []


def test_a_severity_takes_it_and_worse_ones_and_the_rest_is_said(tmp_path: Path) -> None:
    source = write(tmp_path / "t.csv")
    stage = context(tmp_path / "run", run_spec(source, target="y", quality={"fail_on": "error"}))
    check_data(stage)
    assert any("near_duplicate 'twice'" in event.text for event in stage.events.events if hasattr(event, "text"))
    with pytest.raises(DataError, match="fail_on is warning"):
        check(tmp_path / "two", run_spec(source, target="y", quality={"fail_on": "warning"}))


def test_the_given_test_file_is_compared(tmp_path: Path) -> None:
    source = write(tmp_path / "t.csv")
    both = {**source, "test_path": source["path"]}
    with pytest.raises(DataError, match="overlap: 201 of 201 test rows"):
        check(tmp_path / "run", run_spec(both, target="y", quality={"fail_on": ["overlap"]}))


def test_arrays_have_no_report_and_an_unknown_kind_is_refused_by_the_spec(tmp_path: Path) -> None:
    digits = {"kind": "sklearn", "dataset": "digits"}
    with pytest.raises(DataError, match="the quality report covers tables"):
        check(tmp_path / "run", run_spec(digits, quality={"fail_on": "error"}))
    iris = {"kind": "sklearn", "dataset": "iris"}
    with pytest.raises(DataError, match="duplicate_rows"):
        check(tmp_path / "run", run_spec(iris, quality={"fail_on": ["duplicate_rows"]}))
    with pytest.raises(SpecError):
        run_spec(iris, quality={"fail_on": ["nonsense"]})


def test_the_spec_knows_every_kind_of_finding_that_the_code_makes() -> None:
    code = "".join(path.read_text() for path in Path(trainers.data.__path__[0]).rglob("*.py"))
    made = set(re.findall(r'(?:Finding|\badd)\(\s*"(\w+)"', code))
    assert made == set(get_args(Rule))


def test_past_memory_the_same_findings_stop_the_run_and_its_test_file_is_compared(tmp_path: Path) -> None:
    source = write(tmp_path / "t.csv")
    spec = {"target": "y", "memory_bytes": 1, "split": {"by_hash": True}}
    with pytest.raises(DataError) as caught:
        check(tmp_path / "run", run_spec(source, quality={"fail_on": ["near_duplicate", "duplicate_rows"]}, **spec))
    assert {item["rule"] for item in caught.value.details["findings"]} == {"near_duplicate", "duplicate_rows"}
    passed = {**spec, "drop_columns": ["twice"], "quality": {"fail_on": ["near_duplicate"]}}
    assert "past memory" in check(tmp_path / "mended", run_spec(source, **passed)).details["way"]
    both = {**source, "test_path": source["path"]}
    with pytest.raises(DataError, match="overlap: 201 of 201 test rows"):
        check(tmp_path / "two", run_spec(both, quality={"fail_on": ["overlap"]}, **spec))
