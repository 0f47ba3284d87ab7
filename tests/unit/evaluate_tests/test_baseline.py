"""The baseline: what one answer reaches, and what a quick scikit-learn model makes of the same prepared rows."""

from __future__ import annotations

import numpy as np
import pytest

from tests.unit.evaluate_tests.tables import exclusive_or, table
from trainers.data.shards import PreparedData
from trainers.evaluate import baseline
from trainers.evaluate.baseline import reach_without_network


def measured(prepared: PreparedData) -> dict:
    return reach_without_network(prepared, np.asarray(prepared.splits["test"].targets))


def exclusive_or_table(rows: int = 1_500) -> PreparedData:
    (train, answers), (test, truth) = exclusive_or(rows, 0), exclusive_or(400, 1)
    return table({"features": (train, test)}, (answers, truth), ("no", "yes"))


def test_one_answer_is_as_good_as_its_share_and_trees_learn_what_no_line_can() -> None:
    prepared = exclusive_or_table()
    found = measured(prepared)
    truth = prepared.splits["test"].targets
    share = max(truth.mean(), 1 - truth.mean())
    answer = "yes" if truth.mean() > 0.5 else "no"
    assert found["constant"] == {"answer": answer, "metrics": {"accuracy": pytest.approx(share)}}
    assert found["model"]["name"] == "boosted trees"
    assert found["model"]["rows"] == found["model"]["rows_all"] == 1_500
    assert found["model"]["metrics"]["accuracy"] > 0.95
    assert found["model"]["metrics"]["roc_auc"] > 0.98
    assert measured(prepared) == found, "the same rows give the same baseline"


def test_the_rows_that_are_learned_from_follow_from_the_width(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(baseline, "TREE_CELLS_MAX", 4 * 300)
    found = measured(exclusive_or_table())["model"]
    assert (found["rows"], found["rows_all"]) == (300, 1_500)
    monkeypatch.setattr(baseline, "TEST_CELLS_MAX", 4 * 100)
    assert measured(exclusive_or_table())["model"]["rows_test"] == 100
    monkeypatch.setattr(baseline, "TREE_CELLS_MAX", 4 * (baseline.ROWS_MIN - 1))
    assert measured(exclusive_or_table())["model"] is None


def test_the_mean_and_trees_of_a_quantity_speak_its_unit() -> None:
    rng = np.random.default_rng(0)
    features = rng.normal(size=(800, 3)).astype(np.float32)
    goal = (200_000 + 30_000 * np.abs(features[:, 0])).astype(np.float32)
    found = measured(table({"features": (features[:500], features[500:])}, (goal[:500], goal[500:])))
    assert found["constant"]["answer"] == pytest.approx(goal[:500].mean())
    assert found["constant"]["metrics"]["rmse"] == pytest.approx(goal[500:].std(), rel=0.05)
    assert abs(found["constant"]["metrics"]["r2"]) < 0.05
    assert found["model"]["metrics"]["r2"] > 0.95
    assert found["model"]["metrics"]["rmse"] < 6_000


@pytest.mark.parametrize("classes", [("a", "b", "c"), ()])
def test_wide_tables_get_a_linear_model(classes: tuple[str, ...]) -> None:
    """Word counts: mostly zeros, as many columns as words."""
    rng = np.random.default_rng(0)
    words = np.where(rng.random((600, 400)) < 0.08, 1.0, 0.0).astype(np.float32)
    score = words[:, :8].sum(axis=1) - words[:, 8:16].sum(axis=1)
    goal = np.digitize(score, [-0.5, 0.5]).astype(np.int64) if classes else score
    found = measured(table({"features": (words[:400], words[400:])}, (goal[:400], goal[400:]), classes))["model"]
    assert found["name"] == ("logistic regression" if classes else "ridge regression")
    assert found["metrics"].get("accuracy", found["metrics"].get("r2")) > 0.6


def test_a_class_that_the_training_rows_lack_is_all_but_impossible() -> None:
    (train, answers), (test, truth) = exclusive_or(300, 0), exclusive_or(60, 1)
    truth[:3] = 2
    found = measured(table({"features": (train, test)}, (answers, truth), ("no", "yes", "rare")))["model"]
    assert np.isfinite(found["metrics"]["loss"])
    assert found["metrics"]["accuracy"] < 1.0


def test_weights_of_training_rows_count() -> None:
    """Rows of the second class weigh nothing: the model never says it."""
    (train, answers), (test, truth) = exclusive_or(400, 0), exclusive_or(100, 1)
    weights = np.where(answers == 1, 1e-6, 1.0).astype(np.float32)
    found = measured(table({"features": (train, test)}, (answers, truth), ("no", "yes"), weights))["model"]
    assert found["metrics"]["accuracy"] == pytest.approx((truth == 0).mean())


@pytest.mark.parametrize(
    "inputs",
    [
        {"image": (np.zeros((80, 1, 4, 4), np.float32), np.zeros((9, 1, 4, 4), np.float32))},
        {"tokens": (np.zeros((80, 7), np.int64), np.zeros((9, 7), np.int64))},
        {"features": (np.zeros((20, 7), np.float32), np.zeros((9, 7), np.float32))},
    ],
)
def test_images_token_ids_and_a_handful_of_rows_have_the_one_answer_alone(inputs: dict) -> None:
    rows = len(next(iter(inputs.values()))[0])
    prepared = table(inputs, (np.arange(rows) % 2, np.array([1] * 6 + [0] * 3)), ("no", "yes"))
    found = measured(prepared)
    assert found["model"] is None
    assert found["constant"]["metrics"]["accuracy"] == pytest.approx(6 / 9)


def test_many_classes_get_the_linear_model_because_each_has_trees_of_its_own() -> None:
    rng = np.random.default_rng(0)
    goal = np.repeat(np.arange(12), 40)
    features = (rng.normal(size=(480, 6)) + 2 * np.eye(12, 6)[goal]).astype(np.float32)
    found = measured(table({"x": (features, features)}, (goal, goal), tuple(map(str, range(12)))))["model"]
    assert found["name"] == "logistic regression"
    assert found["metrics"]["accuracy"] > 0.3


@pytest.mark.parametrize("classes", [("a", "b"), ()])
def test_values_at_the_end_of_float32_do_not_end_the_run(classes: tuple[str, ...]) -> None:
    """The baseline is left out or finite: it is not what the run is for."""
    features = np.full((200, 300), 1e30, np.float32)
    features[::2] *= -1
    goal = np.arange(200) % 2 if classes else np.arange(200.0) * 1e30
    found = measured(table({"x": (features, features)}, (goal, goal), classes))["model"]
    assert found is None or all(np.isfinite(value) for value in found["metrics"].values())
