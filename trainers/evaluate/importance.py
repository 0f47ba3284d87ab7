"""Which raw columns the network leans on: how much worse it gets when one column's values change rows.

Invariant: all features of one raw column move together (the one-hot columns of a category, a number with its bins and
its missing indicator, the places of a list), so that no row becomes impossible within a column; deterministic; the
work is bounded by counts (rows × columns × repeats × parameters), never by a clock.

Source: permutation importance, Breiman, "Random Forests" (2001), on rows that training has not seen.

Covered: tables of at least two raw columns. Not covered: images, arrays, the words of one text column; columns that
hold the same share what is lost (permuting one leaves the other).
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from torch import nn

from cluster.bundle.transforms import Block, Transforms
from cluster.bundle.transforms.steps import PiecewiseLinear
from trainers.data.shards import PreparedData, Split
from trainers.evaluate.metrics import regression_metrics, softmax
from trainers.models.predict import predict_torch

ROWS_MAX = 2_000
ROWS_MIN = 100  # fewer rows than this and than the split has cannot tell a column from noise
REPEATS = 5
WORK_MAX = 2e10  # multiply-accumulates: about a second of one core
COLUMNS_KEPT = 30  # the report draws no more

PLACE = re.compile(r"(\[\d+\])+$")  # `embedding[7]` is a place of the raw column `embedding`, a list of numbers

Features = dict[str, dict[str, list[int]]]
"""Raw column -> input -> indices of its features."""


def column_features(transforms: Transforms) -> Features:
    """Where each raw column lies in the model's inputs. Columns that feature selection left out are not in it."""
    found: Features = {}
    for output in transforms.outputs:
        owners = [PLACE.sub("", owner) for block in output.blocks for owner in _owners(block)]
        places = range(len(owners)) if output.selected is None else output.selected
        for index, place in enumerate(places):
            found.setdefault(owners[place], {}).setdefault(output.name, []).append(index)
    return found


def _owners(block: Block) -> list[str]:
    """The raw column of each of a block's features."""
    if len(block.columns) == len(block.features):
        return list(block.columns)
    bins = next((step for step in block.steps if isinstance(step, PiecewiseLinear)), None)
    if len(block.columns) > 1 and bins is not None:
        pairs = zip(block.columns, bins.edges, strict=True)
        return [name for name, edges in pairs for _ in range(len(edges) - 1)]
    return [", ".join(block.columns)] * len(block.features)


def permutation_importance(
    module: nn.Module, prepared: PreparedData, targets: np.ndarray, columns: Features
) -> dict[str, Any] | None:
    """What is lost a raw column, on test rows: mean and standard deviation over repeats; worst first.

    Returns:
        `{"metric", "rows", "repeats", "columns": [{"name", "mean", "deviation", "accuracy"?}], "columns_all"}`: `mean`
        is the rise of the loss (classification) or of the RMSE, `accuracy` the accuracy that is lost. None where there
        is nothing to compare, or it would take too long.
    """
    split = prepared.splits["test"]
    rows = _rows(module, len(split), len(columns))
    if len(columns) < 2 or rows is None:
        return None
    with _one_thread():
        return _measured_columns(module, prepared, _sample(split, rows, targets), columns)


def _sample(split: Split, rows: np.ndarray, targets: np.ndarray) -> Split:
    return Split({name: np.asarray(array[rows]) for name, array in split.inputs.items()}, targets[rows])


@contextmanager
def _one_thread() -> Iterator[None]:
    """Batches this small gain nothing by more threads, which wait for one another on a busy machine."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def _measured_columns(module: nn.Module, prepared: PreparedData, sample: Split, columns: Features) -> dict[str, Any]:
    before = _measured(module, sample.inputs, sample.targets, prepared)
    measured = []
    for number, (name, features) in enumerate(columns.items()):
        losses = [
            _measured(module, _permuted(sample, features, (number, repeat)), sample.targets, prepared) - before
            for repeat in range(REPEATS)
        ]
        measured.append(_row(name, np.array(losses), prepared.task))
    measured.sort(key=lambda row: -row["mean"])
    return {
        "metric": "loss" if prepared.task == "classification" else "rmse",
        "rows": len(sample),
        "repeats": REPEATS,
        "columns_all": len(measured),
        "columns": measured[:COLUMNS_KEPT],
    }


def _rows(module: nn.Module, rows: int, columns: int) -> np.ndarray | None:
    """Rows to measure on, ascending. A row costs as many multiply-accumulates as a dense network has parameters."""
    parameters = sum(parameter.numel() for parameter in module.parameters())
    limit = min(ROWS_MAX, int(WORK_MAX / max(1, parameters * columns * REPEATS)))
    if rows <= limit:
        return np.arange(rows)
    if limit < ROWS_MIN:
        return None
    return np.sort(np.random.default_rng(0).choice(rows, limit, replace=False))


def _permuted(sample: Split, features: dict[str, list[int]], key: tuple[int, int]) -> dict[str, np.ndarray]:
    """The inputs with one column's values dealt to other rows."""
    order = np.random.default_rng(key).permutation(len(sample))
    inputs = dict(sample.inputs)
    for name, places in features.items():
        changed = inputs[name].copy()
        changed[:, places] = changed[order][:, places]
        inputs[name] = changed
    return inputs


def _measured(
    module: nn.Module, inputs: dict[str, np.ndarray], targets: np.ndarray, prepared: PreparedData
) -> np.ndarray:
    """(what is drawn, -accuracy): both rise as the model gets worse."""
    outputs = predict_torch(module, inputs)
    if prepared.task != "classification":
        return np.array([regression_metrics(outputs, targets)["metrics"]["rmse"], 0.0])
    chances = softmax(outputs)[np.arange(len(targets)), targets].clip(np.finfo(np.float64).tiny)
    return np.array([-np.log(chances).mean(), -(outputs.argmax(axis=1) == targets).mean()])


def _row(name: str, losses: np.ndarray, task: str) -> dict[str, Any]:
    mean, deviation = losses.mean(axis=0), losses.std(axis=0, ddof=1)
    row = {"name": name, "mean": float(f"{mean[0]:.6g}"), "deviation": float(f"{deviation[0]:.6g}")}
    return {**row, "accuracy": float(f"{mean[1]:.6g}")} if task == "classification" else row
