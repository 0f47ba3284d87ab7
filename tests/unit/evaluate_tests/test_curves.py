"""Points of the report's curves, with scikit-learn, SciPy or plain arithmetic as the judge."""

from __future__ import annotations

import json

import numpy as np
import pytest
from scipy.stats import binomtest
from sklearn import metrics as sk

from tests.unit.evaluate_tests.test_metrics import predictions
from trainers.evaluate import curves
from trainers.evaluate.curves import CURVE_POINTS, classification_curves, regression_points, reliability, thinned
from trainers.evaluate.metrics import softmax


def test_two_classes_have_one_curve_of_the_second_ones_probability() -> None:
    logits, targets = predictions(0, 4_000, 2)
    found = classification_curves(logits, targets, ("no", "yes"))
    (roc,), (ranked,) = found["roc"], found["precision_recall"]
    score = softmax(logits)[:, 1]
    assert (roc["name"], roc["kind"]) == ("yes", "class")
    assert roc["area"] == pytest.approx(sk.roc_auc_score(targets, score), abs=1e-6)
    assert ranked["area"] == pytest.approx(sk.average_precision_score(targets, score), abs=1e-6)
    assert ranked["share"] == pytest.approx(targets.mean(), abs=1e-4)
    assert len(roc["x"]) <= CURVE_POINTS
    assert (roc["x"][0], roc["y"][0], roc["x"][-1], roc["y"][-1]) == (0.0, 0.0, 1.0, 1.0)
    assert np.trapezoid(roc["y"], roc["x"]) == pytest.approx(roc["area"], abs=2e-3), "what is drawn has that area"
    assert (ranked["x"][0], ranked["x"][-1]) == (0.0, 1.0), "recall ascends"


def test_more_classes_have_a_curve_each_against_the_rest_with_both_averages() -> None:
    logits, targets = predictions(1, 600, 3)
    found = classification_curves(logits, targets, ("ant", "bee", "cat"))
    assert [curve["kind"] for curve in found["roc"]] == ["micro", "macro", "class", "class", "class"]
    probabilities, one_hot = softmax(logits), np.eye(3)[targets]
    micro, macro = found["roc"][:2]
    assert micro["area"] == pytest.approx(sk.roc_auc_score(one_hot, probabilities, average="micro"), abs=1e-6)
    assert macro["area"] == pytest.approx(sk.roc_auc_score(one_hot, probabilities, average="macro"), abs=1e-6)
    assert np.trapezoid(macro["y"], macro["x"]) == pytest.approx(macro["area"], abs=5e-3)
    assert found["precision_recall"][1]["area"] == pytest.approx(
        sk.average_precision_score(one_hot, probabilities, average="macro"), abs=1e-6
    )
    assert found["calibration"]["about"] is None, "of many classes, how sure the answer is"


def test_a_class_without_rows_has_no_curve_and_one_class_alone_has_none() -> None:
    logits, targets = predictions(2, 60, 3)
    targets = np.where(targets == 2, 0, targets)
    names = [curve["name"] for curve in classification_curves(logits, targets, ("ant", "bee", "cat"))["roc"]]
    assert names == ["micro average", "macro average", "ant", "bee"]
    alone = classification_curves(logits[:, :2], np.zeros(60, np.int64), ("no", "yes"))
    assert alone["roc"] == alone["precision_recall"] == []
    assert sum(alone["calibration"]["rows"]) == 60


def test_of_many_classes_the_worst_are_drawn_and_of_very_many_none() -> None:
    rng = np.random.default_rng(0)
    targets = np.repeat(np.arange(30), 8)
    logits = rng.normal(size=(240, 30)).astype(np.float32)
    logits[np.arange(240), targets] += np.where(targets < 20, 6.0, 0.0)
    found = classification_curves(logits, targets, [f"c{index}" for index in range(30)])["roc"]
    assert [curve["name"] for curve in found[2:]] == [f"c{index}" for index in range(20, 30)]
    few = classification_curves(np.eye(201, dtype=np.float32), np.arange(201), [str(i) for i in range(201)])
    assert [curve["kind"] for curve in few["roc"]] == ["micro"]


def test_many_scores_are_drawn_from_the_same_sample_each_time(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(curves, "SCORES_MAX", 1_000)
    logits, targets = predictions(3, 5_000, 2)
    first, second = (classification_curves(logits, targets, ("no", "yes")) for _ in range(2))
    assert (first["rows"], first["rows_all"]) == (500, 5_000)
    assert json.dumps(first) == json.dumps(second)
    assert len(json.dumps(first)) < 20_000


def test_thinning_keeps_both_ends_and_the_form() -> None:
    xs = np.linspace(0, 1, 10_000)
    few_xs, few_ys = thinned(xs, xs**2, 50)
    assert len(few_xs) <= 50
    assert (few_xs[0], few_xs[-1]) == (0.0, 1.0)
    assert np.trapezoid(few_ys, few_xs) == pytest.approx(1 / 3, abs=1e-3)


def test_reliability_is_the_share_that_came_true_with_wilsons_interval() -> None:
    stated = np.array([0.05] * 10 + [0.95] * 40)
    right = np.array([0] * 9 + [1] + [1] * 38 + [0] * 2)
    found = reliability(stated, right, 10)
    assert found["rows"] == [10, 40]
    assert found["x"] == [0.05, 0.95]
    assert found["y"] == [0.1, 0.95]
    for index, (hits, rows) in enumerate(((1, 10), (38, 40))):
        judged = binomtest(hits, rows).proportion_ci(method="wilson")
        assert (found["low"][index], found["high"][index]) == pytest.approx((judged.low, judged.high), abs=1e-4)


def test_residuals_are_truth_less_prediction_in_the_targets_unit() -> None:
    predicted = np.linspace(100_000, 300_000, 1_000)
    actual = predicted + np.where(predicted > 200_000, 5_000.0, -5_000.0)
    found = regression_points(predicted[:, None], actual)
    assert (found["rows"], found["rows_all"]) == (500, 1_000)
    assert (found["residuals"]["p05"], found["residuals"]["p95"]) == (-5_000.0, 5_000.0)
    assert found["trend"]["y"] == [-5_000.0] * 5 + [5_000.0] * 5, "the bow that is left to learn"
    pairs = zip(found["actual"], found["predicted"], strict=True)
    assert {round(a - p, -1) for a, p in pairs} == {-5_000.0, 5_000.0}
    one = regression_points(np.array([1.0]), np.array([3.0]))
    assert one["residuals"]["p50"] == 2.0
