"""What the tabular default reaches: `python -m benchmarks.data.tabular --data FOLDER [--set KEY=VALUE]…`.

The configs of Adult and mammography as they are shipped (no epochs, no rates, no model in them), through the check and
prepare stages and the training loop in this process; the peer is scikit-learn's HistGradientBoosting on the same rows.
Mammography is asked twice: with Manta's own split, in which equal rows stay together, and with scikit-learn's
`train_test_split(test_size=0.2, stratify=…, random_state=7)`.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
import yaml
from sklearn.ensemble import HistGradientBoostingClassifier
from sklearn.metrics import average_precision_score, roc_auc_score
from sklearn.model_selection import train_test_split

from cluster.bundle.transforms import Texts
from cluster.pipeline.stage import StageContext
from cluster.spec.load import apply_overrides, validate_spec
from cluster.spec.resolve import HostFacts, ResolvedRun
from cluster.store.run_folder import RunFolder
from cluster.telemetry.events import ListSink
from trainers.data.row_plan import plan_rows
from trainers.data.shards import open_prepared
from trainers.data.stages import check_data, prepare_data
from trainers.export.bundle import versions
from trainers.loop import FitRequest, fit
from trainers.models import build_model, count_parameters

CONFIGS = Path(__file__).parents[2] / "configs"
CASES: dict[str, tuple[str, dict[str, str], str]] = {
    "adult": ("adult", {"path": "adult-train.csv", "test_path": "adult-test.csv"}, "roc_auc"),
    "mammography": ("mammography", {"path": "mammography.csv"}, "average_precision"),
    "mammography_sklearn_split": ("mammography", {"path": "train.csv", "test_path": "test.csv"}, "average_precision"),
}
"""case -> (config, its files, metric)."""
HOST = HostFacts(cpu_cores=1, memory_bytes=8 << 30)


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="benchmarks.data.tabular", description=__doc__)
    parser.add_argument("--data", type=Path, required=True, help="folder with the files of the data sets")
    parser.add_argument("--case", choices=CASES, action="append")
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE")
    parser.add_argument("--no-peer", action="store_true")
    parser.add_argument("--out", type=Path, help="also write the JSON here")
    options = parser.parse_args(argv)
    torch.set_num_threads(1)
    found = [run_case(name, options) for name in options.case or CASES]
    text = json.dumps({"cases": found, "versions": versions(), "threads": 1}, indent=2) + "\n"
    sys.stdout.write(text)
    if options.out:
        options.out.write_text(text, encoding="utf-8")
    return 0


def run_case(name: str, options: argparse.Namespace) -> dict[str, Any]:
    """One data set: the default's score, the peer's, and how long each trained."""
    config, files, metric = CASES[name]
    raw = yaml.safe_load((CONFIGS / f"{config}.yaml").read_text(encoding="utf-8"))
    with tempfile.TemporaryDirectory() as scratch:
        home = _split_by_scikit_learn(options.data, Path(scratch)) if name.endswith("sklearn_split") else options.data
        raw["data"]["source"] |= {key: str(home / file) for key, file in files.items()}
        spec = validate_spec(apply_overrides(raw, ["train.workers=1", *options.set]))
        folder = Path(scratch) / "run"
        folder.mkdir()
        resolved = check_data(_context(folder, spec, "check", None)).resolved
        assert resolved is not None
        prepare_data(_context(folder, spec, "prepare", resolved))
        prepared = open_prepared(folder)
        started = time.perf_counter()
        scores, trained = _train(resolved, folder)
        seconds = time.perf_counter() - started
        targets = np.array(prepared.splits["test"].targets)
        result = {
            "case": name, "metric": metric, "manta": _score(metric, targets, scores), "train_s": round(seconds, 1),
            "rows": {split: len(rows) for split, rows in prepared.splits.items()}, **trained,
        }  # fmt: skip
        if not options.no_peer:
            started = time.perf_counter()
            result["hist_gradient_boosting"] = _score(metric, targets, _peer(spec))
            result["peer_s"] = round(time.perf_counter() - started, 1)
    return result


def _split_by_scikit_learn(data: Path, folder: Path) -> Path:
    """The table of mammography as two files."""
    table = pd.read_csv(data / "mammography.csv", dtype=str)
    parts = train_test_split(table, test_size=0.2, stratify=table["label"], random_state=7)
    for name, part in zip(("train.csv", "test.csv"), parts, strict=True):
        part.to_csv(folder / name, index=False)
    return folder


def _context(folder: Path, spec: Any, stage: str, resolved: ResolvedRun | None) -> StageContext:
    return StageContext(
        stage=stage, run=RunFolder(folder), spec=spec, resolved=resolved, host=HOST, folder=folder, digest="benchmark",
        records={}, events=ListSink(),
    )  # fmt: skip


def _train(resolved: ResolvedRun, prepared: Path) -> tuple[np.ndarray, dict[str, Any]]:
    """Scores of the test rows for the second class, by the best epoch's weights."""
    spec = resolved.spec
    request = FitRequest(
        train=spec.train, batch=resolved.batch, model=spec.model, seed=spec.seed, prepared=prepared, stage="train",
        checkpoints=None, model_factory=None, model_arguments={}, objective=None, objective_arguments={},
    )  # fmt: skip
    result = fit(request, sink=ListSink())
    data = open_prepared(prepared)
    model = build_model(spec.model, data.inputs, data.num_outputs)
    model.load_state_dict(result.weights)
    model.eval()
    with torch.no_grad():
        inputs = [torch.from_numpy(np.array(data.splits["test"].inputs[tensor.name])) for tensor in data.inputs]
        logits = model(*inputs)
    scores = torch.softmax(logits, dim=1)[:, 1].numpy()
    facts = {
        "model": spec.model.model_dump(mode="json"), "parameters": count_parameters(model),
        "epochs": len(result.history), "batch_size_global": resolved.batch.batch_size_global,
        "learning_rate": spec.train.optimizer.learning_rate,
    }  # fmt: skip
    return scores, facts


def _peer(spec: Any) -> np.ndarray:
    """HistGradientBoosting with its defaults, native categories, trained on train, validation, calibration and gate."""
    plan = plan_rows(spec.data)
    matrix = np.stack([_numbers(values) for values in plan.batch.values.values()], axis=1)
    categories = [role == "category" for role in plan.roles.values()]
    rows = np.concatenate([index for name, index in plan.rows.items() if name != "test"])
    model = HistGradientBoostingClassifier(categorical_features=categories, random_state=7)
    model.fit(matrix[rows], plan.batch.targets[rows])
    return model.predict_proba(matrix[plan.rows["test"]])[:, 1]


def _numbers(values: Any) -> np.ndarray:
    """A column as numbers, NaN where missing: categories by their codes."""
    if not isinstance(values, Texts):
        return np.asarray(values)
    return np.where(values.codes < 0, np.nan, values.codes.astype(np.float64))


def _score(metric: str, targets: np.ndarray, scores: np.ndarray) -> float:
    score = roc_auc_score if metric == "roc_auc" else average_precision_score
    return round(float(score(targets, scores)), 4)


if __name__ == "__main__":
    sys.exit(main())
