"""The LCBench surrogate (YAHPO Gym): values -> 52-epoch learning curve. Its files are not part of Manta."""

from __future__ import annotations

import csv
import json
from collections.abc import Mapping
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
from optuna.distributions import BaseDistribution, FloatDistribution, IntDistribution

EPOCHS = 52
COLUMNS = ("batch_size", "learning_rate", "momentum", "weight_decay", "num_layers", "max_units", "max_dropout")
SPACE: dict[str, BaseDistribution] = {
    "batch_size": IntDistribution(16, 512, log=True),
    "learning_rate": FloatDistribution(1e-4, 1e-1, log=True),
    "momentum": FloatDistribution(0.1, 0.99),
    "weight_decay": FloatDistribution(1e-5, 0.1),
    "num_layers": IntDistribution(1, 5),
    "max_units": IntDistribution(64, 1024, log=True),
    "max_dropout": FloatDistribution(0.0, 1.0),
}
ACCURACY = 1  # column of the model's output


class Surrogate:
    """All data sets of the benchmark."""

    def __init__(self, folder: Path) -> None:
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = 1
        self._session = onnxruntime.InferenceSession(
            str(folder / "model.onnx"), options, providers=["CPUExecutionProvider"]
        )
        self._codes: dict[str, int] = json.loads((folder / "encoding.json").read_text(encoding="utf-8"))[
            "OpenML_task_id"
        ]
        self.data_sets = _data_sets(folder)
        self.bounds = _bounds(folder)

    def curve(self, data_set: str, values: Mapping[str, Any]) -> np.ndarray:
        """(52,) validation accuracy in percent after each epoch."""
        return self.curves(data_set, [values])[0]

    def curves(self, data_set: str, points: list[Mapping[str, Any]]) -> np.ndarray:
        """(points, 52) for many configurations in one call."""
        rows = [[epoch, *(float(p[name]) for name in COLUMNS)] for p in points for epoch in range(1, EPOCHS + 1)]
        codes = np.full((len(rows), 1), self._codes[data_set], dtype=np.int32)
        outputs = self._session.run(None, {"x_cat": codes, "x_cont": np.asarray(rows, dtype=np.float32)})[0]
        return np.asarray(outputs)[:, ACCURACY].reshape(len(points), EPOCHS)

    def regret(self, data_set: str, accuracy: float) -> float:
        """(max - value) / (max - min)."""
        low, high = self.bounds[data_set]
        return (high - accuracy) / (high - low)


@lru_cache
def opened(folder: Path) -> Surrogate:
    """One session a process."""
    return Surrogate(folder)


def _data_sets(folder: Path) -> list[str]:
    space = json.loads((folder / "config_space.json").read_text(encoding="utf-8"))
    task = next(item for item in space["hyperparameters"] if item["name"] == "OpenML_task_id")
    return [str(choice) for choice in task["choices"]]


def _bounds(folder: Path) -> dict[str, tuple[float, float]]:
    found: dict[str, dict[str, float]] = {}
    with (folder / "instance_target_statistics.csv").open(encoding="utf-8") as file:
        for row in csv.DictReader(file):
            if row["scenario"] == "lcbench" and row["metric"] == "val_accuracy":
                found.setdefault(row["instance"], {})[row["statistic"]] = float(row["value"])
    return {name: (item["min"], item["max"]) for name, item in found.items()}
