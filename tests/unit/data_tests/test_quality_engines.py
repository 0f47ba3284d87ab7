"""Both engines give the same report on the same file within the stated bounds, over every kind of finding."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any, get_args

import numpy as np
import pyarrow.parquet as pq
import pytest

from cluster.spec.data import Rule
from tests.unit.data_tests.every_finding import PLANTED, tables, write
from trainers.data import check, sample, sketch
from trainers.data.quality import label_noise
from trainers.data.quality.report import QualityReport
from trainers.data.read import batches

SAMPLE_ROWS = 6_000
COUNTED = {
    "missing", "infinite", "duplicate_rows", "white_space", "hidden_missing", "overlap", "constant", "codes", "units",
}  # fmt: skip
"""Findings that follow from the counts of all rows."""
RANK_ERROR = math.sqrt(math.log(2 / 1e-6) / (2 * SAMPLE_ROWS))  # Dvoretzky, Kiefer, Wolfowitz; Massart


@pytest.fixture
def small_sample(monkeypatch: pytest.MonkeyPatch) -> None:
    """Half of the table, so that the sample is one."""
    monkeypatch.setattr(sample, "SAMPLE_ROWS", SAMPLE_ROWS)
    monkeypatch.setattr(batches, "BLOCK_BYTES", 1 << 17)


@pytest.fixture(autouse=True)
def small_forest(monkeypatch: pytest.MonkeyPatch) -> None:
    """The forest that judges labels takes most of a report's time; its size is not what is tested here."""
    monkeypatch.setattr(label_noise, "TREES", 20)
    monkeypatch.setattr(label_noise, "ROWS_MAX", 2_000)


def report(path: str, test: str, memory_bytes: int, **values: Any) -> QualityReport:
    return check.make_report(path, "y", test=test, memory_bytes=memory_bytes, **values)


def assert_same(exact: QualityReport, streamed: QualityReport) -> None:
    """The same findings; counts equal where they are counted, within the bounds elsewhere."""
    assert streamed.rows == exact.rows
    key = [(f.rule, f.column, f.severity, f.fix) for f in exact.findings]
    assert sorted((f.rule, f.column, f.severity, f.fix) for f in streamed.findings) == sorted(key)
    texts = {(f.rule, f.column): f.text for f in exact.findings}
    for finding in streamed.findings:
        if finding.rule in COUNTED:
            assert finding.text == texts[finding.rule, finding.column]
    for name, facts in exact.columns.items():
        found = streamed.columns[name]
        assert {k: found[k] for k in ("kind", "missing")} == {k: facts[k] for k in ("kind", "missing")}
        assert abs(found["different"] - facts["different"]) <= found["bounds"]["different"] * facts["different"]
        assert np.allclose(found["missing_map"], facts["missing_map"], atol=0.1)  # a cell ends within a batch
        if "median" not in facts:
            assert found["most_frequent"] == facts["most_frequent"] or facts["different"] > 4096
        else:
            assert [found[k] for k in ("min", "max", "infinite")] == [facts[k] for k in ("min", "max", "infinite")]
            assert found["mean"] == pytest.approx(facts["mean"], rel=1e-12)


def test_the_planted_table_has_every_kind_of_finding_in_its_column(tmp_path: Path) -> None:
    paths = write(tmp_path, "parquet")
    exact = report(*paths, 1 << 40)
    assert {(f.rule, f.column) for f in exact.findings} == PLANTED
    # a target of one value has no classes; wrong labels and types that no text has, have tests of their own
    assert {rule for rule, _ in PLANTED} == set(get_args(Rule)) - {"target", "label_noise", "unusable_type"}
    for finding in exact.findings:
        assert finding.evidence, finding.rule
        assert finding.severity in ("info", "warning", "error")
        assert finding.fix


@pytest.mark.parametrize("kind", ["parquet", pytest.param("csv", marks=pytest.mark.slow), "csv.gz", "jsonl"])
def test_both_engines_find_the_same_in_a_file_with_every_kind_of_finding(
    kind: str, tmp_path: Path, small_sample: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    paths = write(tmp_path, kind)
    exact = report(*paths, 1 << 40)
    monkeypatch.setattr(check, "read_file", lambda *_: pytest.fail("the whole file was read"))
    streamed = report(*paths, 1)
    assert {(f.rule, f.column) for f in streamed.findings} == PLANTED
    assert_same(exact, streamed)
    values = np.sort(np.asarray(tables()[0]["heavy"]))
    for key, rank in (("q25", 0.25), ("median", 0.5), ("q75", 0.75)):
        at = np.searchsorted(values, streamed.columns["heavy"][key]) / len(values)
        assert abs(at - rank) <= RANK_ERROR


def test_both_engines_find_wrong_labels_and_name_rows_of_the_file(tmp_path: Path, small_sample: None) -> None:
    whole = tables()[0].drop_columns(["leak"])
    path = tmp_path / "t.parquet"
    pq.write_table(whole, path, row_group_size=2_500)
    strong, labels = np.asarray(whole["strong"]), np.asarray(whole["y"])
    for memory_bytes in (1 << 40, 1):
        found = check.make_report(str(path), "y", test=None, memory_bytes=memory_bytes).findings
        noise = next(f for f in found if f.rule == "label_noise")
        assert abs(noise.evidence["share"] - 0.02) < 0.01
        for example in noise.evidence["examples"]:
            assert (labels[example["row"]], example["expected"]) == ("yes", "no")
            assert strong[example["row"]] < 0.98


def test_an_estimated_overlap_is_near_the_count(
    tmp_path: Path, small_sample: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    train, _ = write(tmp_path, "parquet")
    monkeypatch.setattr(sketch, "ROW_HASHES", 4_000)  # of 11,980 different rows
    found = {f.rule: f for f in report(train, train, 1).findings}
    assert abs(found["overlap"].evidence["rows"] - 12_000) < 12_000 * 3 / math.sqrt(4_000 - 2)
    assert "estimated from" in found["overlap"].text
    assert "duplicate_rows" not in found  # 20 rows are within the sketch's error


def test_rows_without_a_column_are_missing_there(tmp_path: Path) -> None:
    path = tmp_path / "t.jsonl"
    lines = ['{"a": 1, "y": "n"}'] * 60 + ['{"a": 2.5, "y": "p", "late": "u"}'] * 60
    path.write_text("\n".join(lines) + "\n")
    exact = check.make_report(str(path), "y", test=None, memory_bytes=1 << 30)
    for block in (1 << 8, 1 << 20):
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(batches, "BLOCK_BYTES", block)
            streamed = check.make_report(str(path), "y", test=None, memory_bytes=1)
        assert streamed.columns["late"]["missing"] == exact.columns["late"]["missing"] == 60
        repeated = [f.text for f in streamed.findings if f.rule == "duplicate_rows"]
        assert repeated == ["118 of 120 rows repeat another row"]
