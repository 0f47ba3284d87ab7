"""The quality report finds what was planted, and says the spec line that mends it."""

from __future__ import annotations

import html
import json
import re
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from trainers.data.check import main
from trainers.data.quality.check_files import check_batches
from trainers.data.quality.drift import stability_index
from trainers.data.quality.findings import Finding
from trainers.data.quality.page import to_html
from trainers.data.quality.report import QualityReport, check_table


def planted(num_rows: int = 300) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(0)
    y = np.where(np.arange(num_rows) % 40 == 0, "yes", "no")
    return {
        "value": np.where(np.arange(num_rows) == 5, "999999", rng.normal(size=num_rows).round(4).astype(str)),
        "holes": np.where(np.arange(num_rows) % 3 == 0, "?", rng.choice(["a", "b"], num_rows)),
        "same": np.full(num_rows, "x"),
        "id": np.array([f"id{index}" for index in range(num_rows)]),
        "mixed": np.where(np.arange(num_rows) % 2 == 0, "7", "seven"),
        "spelt": np.where(np.arange(num_rows) % 2 == 0, "Paris", "paris."),
        "padded": np.array([f" {index % 5}" for index in range(num_rows)]),
        "copy": np.where(y == "yes", "1", "0"),
        "y": y,
    }


RULES = {
    ("missing", "holes"): "data.source.missing: ['?']",
    ("constant", "same"): "data.drop_columns: [same]",
    ("identifier", "id"): "data.drop_columns: [id]",
    ("mixed_types", "mixed"): "data.columns.mixed: category",
    ("label_variants", "spelt"): 'data.clean.map_values: {spelt: {"paris.": "Paris"}}',
    ("outliers", "value"): "data.clean.clip_iqr: 1.5",
    ("white_space", ""): "none needed: it is always stripped",
    ("class_balance", "y"): "data.balance: {method: class_weights}",
    ("near_duplicate", "spelt"): "data.drop_columns: [spelt]",
    ("leakage", "copy"): "data.drop_columns: [copy]",
}


def test_every_planted_fault_is_found_with_its_remedy_and_nothing_else() -> None:
    report = check_table(pa.table(planted()), "y")
    assert {(found.rule, found.column): found.fix for found in report.findings} == RULES


def test_a_clean_table_has_no_findings() -> None:
    rng = np.random.default_rng(0)
    table = pa.table({"a": rng.uniform(size=300), "b": rng.choice(["u", "v"], 300), "y": rng.choice(["n", "p"], 300)})
    assert check_table(table, "y").findings == ()


def test_a_test_file_is_compared_for_overlap_drift_and_labels() -> None:
    rng = np.random.default_rng(0)
    a = rng.normal(size=500)
    train = pa.table({"a": a, "b": rng.normal(size=500), "y": np.where(a > 0, ">50K", "<=50K")})
    b = np.concatenate([np.asarray(train["b"])[:10], rng.normal(3, 1, 490)])
    test = pa.table({"a": a, "b": b, "y": np.where(a > 0, ">50K.", "<=50K.")})
    found = {(item.rule, item.column): item for item in check_table(train, "y", test=test).findings}
    assert found["overlap", ""].text == "10 of 500 test rows have the features of a training row"
    assert found["label_variants", "y"].evidence["map"] == {">50K.": ">50K", "<=50K.": "<=50K"}
    assert ("drift", "b") in found
    assert ("drift", "a") not in found


def test_classes_that_only_the_test_file_has_are_named() -> None:
    train = pa.table({"a": np.arange(90.0), "y": ["up", "down", "flat"] * 30})
    test = pa.table({"a": np.arange(90.0) + 0.5, "y": ["up", "Down.", "gone"] * 30})
    found = {item.rule: item for item in check_table(train, "y", test=test).findings}
    assert found["label_variants"].evidence["map"] == {"Down.": "down"}
    assert (found["target"].severity, found["target"].evidence) == ("error", {"unseen": ["gone"]})
    assert found["target"].fix == 'data.clean.map_values: {y: {"gone": ""}}'
    streamed = {
        item.rule: item for item in check_batches([train.slice(0, 40), train.slice(40)], "y", test=[test]).findings
    }
    assert streamed["target"] == found["target"]


def test_stability_index_is_zero_for_one_distribution_and_grows_with_the_shift() -> None:
    rng = np.random.default_rng(0)
    a = rng.normal(size=20_000)
    assert stability_index(a, rng.normal(size=20_000)) < 0.01
    assert stability_index(a, rng.normal(0.3, 1, 20_000)) < stability_index(a, rng.normal(1.0, 1, 20_000))


def test_the_command_prints_json_writes_html_and_ends_with_2_on_errors(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    columns = planted()
    path = tmp_path / "t.csv"
    rows = zip(*columns.values(), strict=True)
    path.write_text("\n".join([",".join(columns), *(",".join(row) for row in rows)]) + "\n")
    page = tmp_path / "q.html"
    assert main([str(path), "--target", "y", "--json", "--html", str(page)]) == 2
    printed = json.loads(capsys.readouterr().out)
    assert printed["rows"] == 300
    assert printed["columns"]["value"]["outliers"] >= 1
    text = page.read_text()
    assert "<svg" in text
    assert "http" not in text
    assert "<script" not in text
    assert text.count("<rect class=holes") == 40  # of the one column with holes, a cell a run of rows
    assert "max: 999,999" in text
    evidence = re.findall(r"<div class=soft>(.*?)</div>", text)
    assert evidence
    assert not re.search(r"[{}\[\]]|&quot;|1000000", "".join(evidence)), "it is said in words, not as JSON"
    assert main([str(path)]) == 0
    capsys.readouterr()
    assert main([str(path), "--target", "z"]) == 2
    assert "no column 'z'" in capsys.readouterr().err


def test_evidence_reads_as_a_person_would_write_it() -> None:
    evidence = {
        "max": 99999.0, "min": 0.000123456, "fences": [-1.5, 99999.5], "words": {"?": 3, " ": 1},
        "map": {">50K.": ">50K"}, "variants": [["Yes", "yes"]], "examples": [{"row": 12, "label": "a"}],
        "values": list(range(9)), "columns": {"age": {"count": 3, "fences": [-2.0, 78.0]}, "size": {"count": 1}},
    }  # fmt: skip
    report = QualityReport(
        rows=3, columns={}, findings=(Finding("r", "info", "a_longColumn.name", "t", "f", evidence),)
    )
    page = html.unescape(to_html(report, "t.csv"))
    lines = re.findall(r"<div class=soft>(.*?)</div>", page)
    assert lines == [
        "max: 99,999 · min: 1.23e-04", "fences: -1.5, 100,000", "words: ? 3, “ ” 1", "map: >50K. → >50K",
        "variants: Yes, yes", "examples: row 12, label a", "values: 0, 1, 2, 3, 4 and 4 more",
        "columns: age: count 3, fences -2 / 78; size: count 1",
    ]  # fmt: skip
    assert "a_<wbr>long<wbr>Column.<wbr>name" in page, "a name breaks between its words"
    assert "anywhere" not in page, "and never inside one that fits"


def test_values_of_the_data_are_escaped_on_the_page() -> None:
    bad = "<script>alert(1)</script>"
    table = pa.table({bad: ["?", bad] * 60, "y": ["n", "p"] * 60})
    page = to_html(check_table(table, "y"), f"/tmp/{bad}.csv")
    assert "<script" not in page
    assert "&lt;script&gt;alert" in page
