"""What is reached without a network: by one answer for every row, and by a quick scikit-learn model.

Invariant: deterministic and bounded: the rows that the quick model learns from and predicts follow from the number of
features and outputs, never from a clock. It learns from training rows only, and never ends a run.

Covered: any task by one answer; tables (numbers, categories, word counts) by boosted trees, wide ones by a linear
model. Not covered: images, token ids.
"""

from __future__ import annotations

import warnings
from typing import Any

import numpy as np
from threadpoolctl import threadpool_limits

from cluster.bundle.signature import DATATYPE_OF
from trainers.data.shards import PreparedData, Split
from trainers.evaluate.metrics import classification_metrics, regression_metrics

TREES_FEATURES_MAX = 256  # wider tables go to the linear model: trees try each feature in each node
TREE_CELLS_MAX = 1_000_000  # rows × features × outputs: less than a second of one core for TREES
LINEAR_CELLS_MAX = 4_000_000
ROWS_MAX = 10_000
TREES_OUTPUTS_MAX = 10  # each class has trees of its own: beyond, the linear model is the quick one
TEST_CELLS_MAX = 4_000_000  # rows × features of the test split that are predicted
ROWS_MIN = 50  # fewer do not show what trees can do
TREES = 60
LEARNING_RATE = 0.15  # fewer, larger steps than scikit-learn's 100 of 0.1
LINEAR_STEPS = 100
DENSE_SHARE = 0.2  # sparser features are kept as a sparse matrix
PROBABILITY_MIN = 1e-6  # logarithms of what trees call impossible


def reach_without_network(prepared: PreparedData, targets: np.ndarray) -> dict[str, Any]:
    """What is reached on the test rows: `{"constant": {"answer", "metrics"}, "model": {…} | None}`.

    A model is `{"name", "rows", "rows_all", "rows_test", "rows_test_all", "metrics"}`.

    Args:
        prepared: its training rows are learned from, its test rows predicted.
        targets: (N,) of the test rows, in the unit of the metrics.
    """
    return {"constant": constant_answer(prepared, targets), "model": quick_model(prepared, targets)}


def constant_answer(prepared: PreparedData, targets: np.ndarray) -> dict[str, Any]:
    """The class that is most frequent among the test rows (no other answer is right more often), or the mean."""
    if prepared.task == "classification":
        counts = np.bincount(targets, minlength=len(prepared.classes))
        best = int(counts.argmax())
        return {"answer": prepared.classes[best], "metrics": {"accuracy": float(counts[best] / len(targets))}}
    mean = float(np.mean(prepared.splits["train"].targets, dtype=np.float64))
    metrics = regression_metrics(np.full(len(targets), mean), targets)["metrics"]
    return {"answer": mean, "metrics": {name: round(value, 4) + 0.0 for name, value in metrics.items()}}


def quick_model(prepared: PreparedData, targets: np.ndarray) -> dict[str, Any] | None:
    """A scikit-learn model's metrics on the test rows; None where the inputs are no table or the rows are few."""
    width = table_width(prepared)
    if width is None:
        return None
    trees = width <= TREES_FEATURES_MAX and len(prepared.classes) <= TREES_OUTPUTS_MAX
    train, test = prepared.splits["train"], prepared.splits["test"]
    rows, tested = _training_rows(prepared, width, trees), _sample(len(test), TEST_CELLS_MAX // width)
    goal = np.asarray(train.targets)[rows]
    if len(rows) < ROWS_MIN or (prepared.classes and len(np.unique(goal)) < 2):
        return None
    answers = _learned(prepared, rows, tested, trees)
    if not np.isfinite(answers).all():  # values too large for a linear model
        return None
    if prepared.task == "classification":
        metrics = classification_metrics(answers, targets[tested], prepared.classes)["metrics"]
    else:
        metrics = regression_metrics(answers, targets[tested])["metrics"]
    return {
        "name": "boosted trees" if trees else ("logistic regression" if prepared.classes else "ridge regression"),
        "rows": len(rows),
        "rows_all": len(train),
        "rows_test": len(tested),
        "rows_test_all": len(test),
        "metrics": {name: float(f"{value:.6g}") for name, value in metrics.items()},
    }


def _learned(prepared: PreparedData, rows: np.ndarray, tested: np.ndarray, trees: bool) -> np.ndarray:
    """Learn from training rows, answer for test rows."""
    train = prepared.splits["train"]
    weights = None if train.weights is None else np.asarray(train.weights)[rows]
    model = _trees(prepared.task) if trees else _linear(prepared.task)
    with warnings.catch_warnings(), threadpool_limits(1):  # more threads gain little, and lose much on a busy machine
        warnings.simplefilter("ignore")  # "did not converge": what is reached in these steps is the baseline
        model.fit(_features(train, rows, dense=trees), np.asarray(train.targets)[rows], sample_weight=weights)
        return _answers(model, prepared, _features(prepared.splits["test"], tested, dense=trees))


def table_width(prepared: PreparedData) -> int | None:
    """Features of one row where every input is a matrix of floating-point numbers, else None."""
    floats = {name for dtype, name in DATATYPE_OF.items() if np.issubdtype(dtype, np.floating)}
    if any(len(tensor.shape) != 2 or tensor.datatype not in floats for tensor in prepared.inputs):
        return None
    return sum(int(tensor.shape[1]) for tensor in prepared.inputs)


def _training_rows(prepared: PreparedData, width: int, trees: bool) -> np.ndarray:
    """Ascending training rows to learn from: all, or a sample that keeps to the budget."""
    train = prepared.splits["train"]
    outputs = len(prepared.classes) if len(prepared.classes) > 2 else 1  # two classes are one sum of trees
    cells = (TREE_CELLS_MAX if trees else LINEAR_CELLS_MAX) // (width * outputs)
    limit = min(ROWS_MAX, cells)
    return _sample(len(train), limit)


def _sample(rows: int, limit: int) -> np.ndarray:
    """Ascending rows, all of them where they are few."""
    if rows <= limit:
        return np.arange(rows)
    return np.sort(np.random.default_rng(0).choice(rows, limit, replace=False))


def _features(split: Split, rows: np.ndarray, *, dense: bool) -> Any:
    """(N, F) of all inputs side by side; sparse where a linear model gains by it."""
    parts = [np.asarray(array[rows]) for array in split.inputs.values()]
    matrix = parts[0] if len(parts) == 1 else np.concatenate(parts, axis=1)
    if dense:
        return matrix
    wide = matrix.astype(np.float64)  # products of two float32 always fit
    if np.count_nonzero(wide) > DENSE_SHARE * wide.size:
        return wide
    from scipy.sparse import csr_matrix

    return csr_matrix(wide)


def _trees(task: str) -> Any:
    from sklearn.ensemble import HistGradientBoostingClassifier, HistGradientBoostingRegressor

    kind = HistGradientBoostingClassifier if task == "classification" else HistGradientBoostingRegressor
    return kind(max_iter=TREES, learning_rate=LEARNING_RATE, early_stopping=False, random_state=0)


def _linear(task: str) -> Any:
    from sklearn.linear_model import LogisticRegression, Ridge

    if task == "classification":
        return LogisticRegression(C=10.0, max_iter=LINEAR_STEPS)
    return Ridge(random_state=0)


def _answers(model: Any, prepared: PreparedData, features: Any) -> np.ndarray:
    """(N, C) logarithms of probabilities, a class that the sample lacked being all but impossible; or (N,) values."""
    if prepared.task != "classification":
        return np.asarray(model.predict(features))
    found = model.predict_proba(features)
    chances = np.full((len(found), len(prepared.classes)), PROBABILITY_MIN)
    chances[:, model.classes_.astype(np.int64)] = found.clip(PROBABILITY_MIN, 1.0)
    return np.log(chances).astype(np.float32)
