"""What the report draws about predictions, from what the evaluate stage writes about real ones."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from cluster.report import write_report
from cluster.report.evaluation import metric_name
from cluster.report.figures import label_of, tick_text
from cluster.store.run_folder import RunFolder
from cluster.telemetry.final import final_rows
from tests.unit.evaluate_tests.test_metrics import predictions
from tests.unit.report_tests.test_report import full_run, parsed, record, run_at
from trainers.evaluate.curves import classification_curves, regression_points
from trainers.evaluate.metrics import classification_metrics, regression_metrics

HARD_NAMES = ("$5 & <up>", "_private$", "数字", "a\nvery long name that goes on and on and on")
IMPORTANCE = {
    "metric": "loss", "rows": 500, "repeats": 5, "columns_all": 33,
    "columns": [
        {"name": name, "mean": 0.1 / (at + 1), "deviation": 0.01, "accuracy": 0.02}
        for at, name in enumerate([*HARD_NAMES, *(f"c{index}" for index in range(26))])
    ],
}  # fmt: skip
BASELINE = {
    "constant": {"answer": "<none>", "metrics": {"accuracy": 0.51}},
    "model": {
        "name": "boosted trees",
        "rows": 300,
        "rows_all": 900,
        "rows_test": 40,
        "rows_test_all": 50,
        "metrics": {"accuracy": 0.97, "loss": 0.2},
    },
}


def evaluated(path: Path, facts: dict[str, Any], evidence: dict[str, Any] | None) -> RunFolder:
    run = run_at(path, [])
    record(run, "evaluate", facts)
    if evidence is not None:
        (run.stage("evaluate") / "evidence.json").write_text(json.dumps(evidence), encoding="utf-8")
    return run


def page(run: RunFolder) -> str:
    html = write_report(run).read_text(encoding="utf-8")
    ids = parsed(html).ids
    assert len(ids) == len(set(ids))
    return html


def test_many_classes_with_hard_names_have_all_three_curves_and_the_importance_of_columns(tmp_path: Path) -> None:
    logits, targets = predictions(0, 300, 4)
    facts = {**classification_metrics(logits, targets, HARD_NAMES), "baseline": BASELINE}
    evidence = {"curves": classification_curves(logits, targets, HARD_NAMES), "importance": IMPORTANCE}
    html = page(evaluated(tmp_path, facts, evidence))
    for title in ("ROC", "Precision and recall", "Calibration", "Importance of the columns"):
        assert f"<h3>{title}</h3>" in html
    assert "micro average" in html
    assert "13 columns below these are not drawn" in html
    assert ">$5 &amp; &lt;up&gt;<" in html, "a name is neither TeX nor markup"
    assert f"macro average {facts['metrics']['roc_auc']:.4f}" in html


def test_two_classes_say_whose_probability_is_ranked(tmp_path: Path) -> None:
    logits, targets = predictions(1, 200, 2)
    facts = classification_metrics(logits, targets, ("no", "yes"))
    html = page(evaluated(tmp_path, facts, {"curves": classification_curves(logits, targets, ("no", "yes"))}))
    assert f"{facts['metrics']['roc_auc']:.4f} for “yes”" in html
    assert "stated probability of “yes”" in html
    assert "<h3>Importance" not in html


def test_a_quantity_has_its_residuals_in_its_own_unit(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    truth = rng.normal(200_000, 40_000, 300)
    values = (truth + rng.normal(0, 9_000, 300)).reshape(-1, 1)
    facts = {**regression_metrics(values, truth), "baseline": {"constant": {"answer": 2e5, "metrics": {"rmse": 4e4}}}}
    html = page(evaluated(tmp_path, facts, {"curves": regression_points(values, truth), "importance": None}))
    assert "<h3>Predicted and actual values</h3>" in html
    assert "<h3>Residuals</h3>" in html
    assert ">200,000<" in html, "ticks have their digits"
    assert "baseline: the mean 40,000" in html


@pytest.mark.parametrize("accuracy", [0.98, 0.9, 0.5])
def test_the_baseline_stands_beside_the_headline_and_is_said_where_it_is_better(
    tmp_path: Path, accuracy: float
) -> None:
    html = page(evaluated(tmp_path, {"metrics": {"accuracy": accuracy, "loss": 0.1}, "baseline": BASELINE}, None))
    assert "baseline: boosted trees 97.00 %, always “&lt;none&gt;” 51.00 %" in html
    assert "Boosted trees: a quick scikit-learn model that nothing was tuned for, on 300 of 900 training rows." in html
    assert "It was asked for 40 of 50 test rows." in html
    assert f"<strong>{max(100 * accuracy, 97):.2f} %</strong>" in html
    assert ("The quick model does better than the network" in html) == (accuracy == 0.9)
    assert ("One answer for every row does better" in html) == (accuracy == 0.5)


def test_of_unequal_classes_a_network_that_tells_them_apart_is_not_said_to_have_learned_nothing(tmp_path: Path) -> None:
    """2 % positives, class weights: fewer rows are right than with one answer, and it is the better model."""
    facts = {
        "metrics": {"accuracy": 0.96, "balanced_accuracy": 0.9},
        "baseline": {"constant": {"answer": "no", "metrics": {"accuracy": 0.98}}, "model": None},
    }
    html = page(evaluated(tmp_path, facts, None))
    assert "because the classes are unequal" in html
    assert "nothing that it learned" not in html


def test_a_run_of_an_earlier_version_has_its_metrics_and_no_empty_figures(tmp_path: Path) -> None:
    html = page(full_run(tmp_path))
    assert "All metrics" in html
    assert "baseline" not in html.split("<body>")[1].split('id="spec"')[0].replace('class="baseline"', "")
    assert all(f"<h3>{title}</h3>" not in html for title in ("ROC", "Calibration", "Residuals"))


def test_the_closing_table_says_the_baseline_of_the_first_metric_once() -> None:
    metrics = {"accuracy": 0.98, "loss": 0.1}
    rows = dict(final_rows({"metrics": metrics, "baseline": BASELINE}))
    assert rows["test accuracy"] == "98.00 % (baseline: boosted trees 97.00 %)"
    assert rows["test loss"] == "0.1"
    constant = {"constant": BASELINE["constant"], "model": None}
    rows = dict(final_rows({"metrics": metrics, "baseline": constant}))
    assert rows["test accuracy"] == "98.00 % (baseline: always “<none>” 51.00 %)"
    assert dict(final_rows({"metrics": metrics, "baseline": None}))["test accuracy"] == "98.00 %"


def test_labels_ticks_and_metrics_read_as_a_person_writes_them() -> None:
    assert label_of("a\n b") == "a b"
    assert label_of("x" * 40, 11) == "xxxxx…xxxxx"
    assert label_of("") == "“”"
    assert [tick_text(value) for value in (0.0005, 0.1 + 0.2, -0.0, 200_000, 99_999, 78e9)] == [
        "0.0005", "0.3", "0", "200,000", "99,999", "7.8e+10",
    ]  # fmt: skip
    assert [metric_name(name) for name in ("validation.rmse", "macro_f1", "roc_auc", "r2")] == [
        "validation RMSE", "macro F1", "ROC AUC", "R²",
    ]  # fmt: skip
