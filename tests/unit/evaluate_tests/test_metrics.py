"""The evaluate stage's numbers, with scikit-learn called in another way (or plain arithmetic) as the judge."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn import metrics as sk

from cluster.errors import ModelError
from trainers.evaluate.metrics import calibration_error, classification_metrics, regression_metrics, softmax

CLASSES = ("ant", "bee", "cat")


def predictions(seed: int, rows: int, classes: int) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    targets = rng.integers(0, classes, rows)
    targets[:classes] = np.arange(classes)  # each class occurs
    logits = rng.normal(0, 2, (rows, classes)).astype(np.float32)
    logits[np.arange(rows), targets] += 1.5
    return logits, targets.astype(np.int64)


@pytest.mark.parametrize("seed", [0, 1])
def test_three_classes_as_scikit_learn_judges_them(seed: int) -> None:
    logits, targets = predictions(seed, 200, 3)
    found = classification_metrics(logits, targets, CLASSES)
    predicted, probabilities = logits.argmax(axis=1), softmax(logits)
    report = sk.classification_report(targets, predicted, target_names=CLASSES, output_dict=True)
    one_hot = np.eye(3)[targets]
    expected = {
        "accuracy": report["accuracy"],
        "balanced_accuracy": sk.balanced_accuracy_score(targets, predicted),
        "macro_precision": report["macro avg"]["precision"],
        "macro_recall": report["macro avg"]["recall"],
        "macro_f1": report["macro avg"]["f1-score"],
        "loss": sk.log_loss(targets, probabilities),
        "roc_auc": np.mean([sk.roc_auc_score(one_hot[:, c], probabilities[:, c]) for c in range(3)]),
        "average_precision": np.mean(
            [sk.average_precision_score(one_hot[:, c], probabilities[:, c]) for c in range(3)]
        ),
    }
    for name, value in expected.items():
        assert found["metrics"][name] == pytest.approx(value, rel=1e-9), name
    assert found["confusion"] == sk.confusion_matrix(targets, predicted).tolist()
    for row in found["per_class"]:
        judged = report[row["class"]]
        assert row["f1"] == pytest.approx(judged["f1-score"])
        assert row["support"] == judged["support"]


def test_two_classes_are_ranked_by_the_second_ones_probability() -> None:
    logits, targets = predictions(3, 100, 2)
    found = classification_metrics(logits, targets, CLASSES[:2])["metrics"]
    score = logits[:, 1] - logits[:, 0]  # the same order as its probability
    assert found["roc_auc"] == pytest.approx(sk.roc_auc_score(targets, score))
    assert found["average_precision"] == pytest.approx(sk.average_precision_score(targets, score))


def test_a_ranking_that_is_not_defined_is_left_out() -> None:
    logits = np.array([[2.0, 0.0, 0.0], [0.0, 1.0, 0.0]], np.float32)
    found = classification_metrics(logits, np.array([0, 1]), CLASSES)
    assert "roc_auc" not in found["metrics"]
    assert "average_precision" not in found["metrics"]
    assert all(math.isfinite(value) for value in found["metrics"].values())
    assert found["metrics"]["balanced_accuracy"] == 1.0, "a class without rows has no recall"
    assert found["per_class"][2] == {"class": "cat", "precision": 0.0, "recall": 0.0, "f1": 0.0, "support": 0}


def binned_by_hand(probabilities: np.ndarray, targets: np.ndarray) -> float:
    total = 0.0
    confidence, right = probabilities.max(axis=1), probabilities.argmax(axis=1) == targets
    for index in range(15):
        low, high = index / 15, (index + 1) / 15
        inside = (confidence > low) & (confidence <= high)
        if inside.any():
            total += inside.sum() / len(targets) * abs(right[inside].mean() - confidence[inside].mean())
    return total


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 10_000), st.integers(2, 5), st.integers(5, 80))
def test_calibration_error_is_the_binned_gap(seed: int, classes: int, rows: int) -> None:
    logits, targets = predictions(seed, rows, classes)
    probabilities = softmax(logits)
    assert calibration_error(probabilities, targets) == pytest.approx(binned_by_hand(probabilities, targets), abs=1e-9)


def test_a_sure_model_that_is_right_half_the_time_is_half_wrong_about_itself() -> None:
    probabilities = np.tile([1.0, 0.0], (10, 1))
    assert calibration_error(probabilities, np.array([0, 1] * 5)) == pytest.approx(0.5)
    even = np.tile([0.5, 0.5], (10, 1))
    assert calibration_error(even, np.array([0, 1] * 5)) == pytest.approx(0.0)


def test_regression_as_scikit_learn_judges_it() -> None:
    rng = np.random.default_rng(0)
    targets = rng.normal(size=50)
    values = (targets + rng.normal(0, 0.3, 50)).astype(np.float32).reshape(-1, 1)
    found = regression_metrics(values, targets)["metrics"]
    assert found["rmse"] == pytest.approx(sk.root_mean_squared_error(targets, values[:, 0]))
    assert found["mae"] == pytest.approx(np.abs(targets - values[:, 0]).mean())
    assert found["r2"] == pytest.approx(sk.r2_score(targets, values[:, 0]))
    assert "r2" not in regression_metrics(values, np.ones(50))["metrics"]


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_predictions_that_are_not_finite_are_refused(bad: float) -> None:
    logits = np.zeros((4, 2), np.float32)
    logits[1, 0] = bad
    with pytest.raises(ModelError, match="1 of 4 rows"):
        classification_metrics(logits, np.zeros(4, np.int64), CLASSES[:2])
