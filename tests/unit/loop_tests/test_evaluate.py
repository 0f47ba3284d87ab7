"""Metrics of an epoch: sums over counts over all workers; logged losses depend neither on workers nor on K."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from sklearn import metrics as sk
from torch.nn import functional as F

from cluster.spec.train import EPOCH_METRICS
from cluster.telemetry.events import ListSink, TrainStep
from tests.unit.loop_tests.rig import CLASSES, request_for, run_ranks, start, write_data
from trainers.loop import FitRequest, fit
from trainers.loop.data.loader import SplitReader
from trainers.loop.evaluate import confusion_metrics, evaluate_split
from trainers.loop.parts.losses import IGNORE_INDEX

ROWS = 31  # over two workers: 15 and 16 rows


def weighted_data(folder: Path) -> Path:
    """A validation split whose first rows weigh much more: a mean of workers' means is far off."""
    prepared = write_data(folder, 3 * ROWS)
    weights = np.ones(ROWS, np.float32)
    weights[:9] = 25.0
    np.save(prepared / "validation" / "weights.npy", weights)
    targets = np.load(prepared / "validation" / "targets.npy")
    targets[3] = targets[20] = IGNORE_INDEX
    np.save(prepared / "validation" / "targets.npy", targets)
    return prepared


def request(prepared: Path, workers: int, metric: str = "validation.macro_f1") -> FitRequest:
    return request_for(prepared, batch=12, micro=5, workers=workers, best={"metric": metric, "mode": "max"})


def _metrics(rank: int, prepared: str, workers: int) -> dict[str, float]:
    job, state = start(request(Path(prepared), workers))
    return evaluate_split(job, state, job.validation, "validation")


def judged(prepared: Path) -> dict[str, float]:
    """By scikit-learn over all rows at once."""
    job, state = start(request(prepared, 1))
    split = job.data.splits["validation"]
    targets, weights = np.array(split.targets), np.array(split.weights)
    keep = targets != IGNORE_INDEX
    with torch.no_grad():
        probabilities = state.model.eval()(torch.from_numpy(np.array(split.inputs["x"]))).softmax(1).numpy()
    predicted = probabilities.argmax(axis=1)[keep]
    targets, weights = targets[keep], weights[keep]
    return {
        "validation.loss": sk.log_loss(targets, probabilities[keep], sample_weight=weights, labels=range(CLASSES)),
        "validation.accuracy": sk.accuracy_score(targets, predicted, sample_weight=weights),
        "validation.macro_f1": sk.f1_score(targets, predicted, sample_weight=weights, average="macro"),
        "validation.balanced_accuracy": sk.balanced_accuracy_score(targets, predicted, sample_weight=weights),
    }


def test_uneven_shards_give_the_metrics_of_all_rows_not_a_mean_of_means(tmp_path: Path) -> None:
    prepared, workers = weighted_data(tmp_path / "data"), 2
    expected = judged(prepared)
    for found in run_ranks(workers, _metrics, tmp_path / "ranks", str(prepared), workers):
        assert found == pytest.approx(expected, rel=1e-6)
    assert set(expected) | {"validation.rmse", "train.loss"} == set(EPOCH_METRICS)  # what a spec may name
    parts = []
    for rows in np.array_split(np.arange(ROWS), workers):  # the common shortcut, which must fail here
        job, state = start(request(prepared, 1))
        split = job.data.splits["validation"]
        part = type(split)({"x": split.inputs["x"][rows]}, split.targets[rows], split.weights[rows])
        reader = SplitReader(part, job.device, np.where(part.targets == IGNORE_INDEX, 0, part.weights))
        parts.append(evaluate_split(job, state, reader, "validation")["validation.loss"])
    assert abs(np.mean(parts) / expected["validation.loss"] - 1) > 0.005


def test_confusion_metrics_are_made_only_where_the_spec_asks(tmp_path: Path) -> None:
    job, state = start(request(weighted_data(tmp_path), 1, "validation.accuracy"))
    assert set(evaluate_split(job, state, job.validation, "validation")) == {"validation.loss", "validation.accuracy"}


def test_a_run_may_choose_its_best_epoch_by_macro_f1(tmp_path: Path) -> None:
    result = fit(request(weighted_data(tmp_path), 1), sink=ListSink(), device=torch.device("cpu"))
    values = [epoch.metrics["validation.macro_f1"] for epoch in result.history]
    assert result.best_epoch == 1 + int(np.argmax(values))


@pytest.mark.parametrize("seed", range(3))
def test_a_confusion_matrix_says_as_much_as_its_rows(seed: int) -> None:
    rng = np.random.default_rng(seed)
    true, predicted = rng.integers(0, 4, (2, 60))
    weights = rng.uniform(0.1, 3, 60)
    matrix = sk.confusion_matrix(true, predicted, labels=range(5), sample_weight=weights)  # class 4 has no rows
    found = confusion_metrics(matrix)
    f1 = sk.f1_score(true, predicted, sample_weight=weights, labels=range(5), average="macro", zero_division=0.0)
    assert found["macro_f1"] == pytest.approx(f1)
    recall = sk.balanced_accuracy_score(true, predicted, sample_weight=weights)
    assert found["balanced_accuracy"] == pytest.approx(recall)


def _losses(rank: int, prepared: str, workers: int, micro: int) -> list[float]:
    sink = ListSink()
    request = request_for(
        Path(prepared), batch=12, micro=micro, workers=workers, epochs=2, log_every_updates=2, keep="last"
    )
    result = fit(request, sink=sink, device=torch.device("cpu"))
    logged = [event.loss for event in sink.events if isinstance(event, TrainStep)]
    return [*logged, *(epoch.metrics["train.loss"] for epoch in result.history)]


def test_logged_losses_depend_neither_on_workers_nor_on_micro_batches(tmp_path: Path) -> None:
    """37 rows in windows of 12: the last window of an epoch has one row."""
    prepared = write_data(tmp_path / "data", 37, ignore_every=5)
    alone = _losses(0, str(prepared), 1, 12)
    assert len(alone) == 2 * 2 + 2
    assert _losses(0, str(prepared), 1, 5) == pytest.approx(alone, rel=1e-9)
    pair = run_ranks(2, _losses, tmp_path / "ranks", str(prepared), 2, 4)
    assert pair[0] == pytest.approx(alone, rel=1e-9)
    assert pair[1] == alone[-2:] or pair[1] == pytest.approx(alone[-2:], rel=1e-9), "rank 1 logs nothing, and agrees"


def test_what_is_evaluated_is_the_average_in_eval_mode_by_the_plain_loss(tmp_path: Path) -> None:
    request = request_for(
        write_data(tmp_path, 60),
        batch=8,
        micro=4,
        arguments={"dropout": 0.5, "norm": True},
        ema={"decay": 0.9},
        loss={"label_smoothing": 0.3},
    )
    job, state = start(request)
    assert state.ema is not None
    for average in state.ema.averages:
        average.mul_(1.7)
    found = evaluate_split(job, state, job.validation, "validation")["validation.loss"]
    assert state.model.training, "and training goes on as before"
    split = job.data.splits["validation"]
    with state.ema.applied(), torch.no_grad():
        outputs = state.model.eval()(torch.from_numpy(np.array(split.inputs["x"])))
    assert found == pytest.approx(float(F.cross_entropy(outputs, torch.from_numpy(np.array(split.targets)))), rel=1e-6)
