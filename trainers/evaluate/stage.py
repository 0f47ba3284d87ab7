"""The evaluate stage: the trained module on the test split, which nothing before this has read.

Files: `predictions.npz` (logits, targets), `evidence.json` (what the report draws: curves, importance of columns).
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path

import numpy as np

from cluster.atomic import write_json
from cluster.bundle.files import TRANSFORMS
from cluster.bundle.transforms import Transforms, load_transforms
from cluster.pipeline.stage import StageContext, StageResult
from cluster.store.stage_facts import EvaluateFacts
from cluster.telemetry.view import format_value
from trainers.data.shards import PreparedData, open_prepared
from trainers.evaluate.baseline import reach_without_network
from trainers.evaluate.curves import classification_curves, regression_points
from trainers.evaluate.importance import column_features, permutation_importance
from trainers.evaluate.metrics import classification_metrics, regression_metrics
from trainers.models.predict import predict_torch
from trainers.models.weights import load_module

EVIDENCE = "evidence.json"


def run_evaluation(context: StageContext) -> StageResult:
    """Predict the test split with the trained weights; metrics, baselines and what the report draws."""
    prepared = open_prepared(context.files("prepare"))
    split = prepared.splits["test"]
    model, trained = context.run_resolved.spec.model, context.files("train")
    module = load_module(model, prepared.inputs, prepared.num_outputs, trained, prepared.target)
    logits = predict_torch(module, split.inputs)
    targets = np.asarray(split.targets)
    np.savez(context.folder / "predictions.npz", logits=logits, targets=targets)
    scores = evaluate_predictions(logits, targets, prepared)
    context.progress(1, 3, text="baseline")
    facts = EvaluateFacts(**scores, baseline=reach_without_network(prepared, targets))
    context.progress(2, 3, text="importance of the columns")
    transforms = transforms_of(context.files("prepare"))
    columns = column_features(transforms) if transforms else {}
    evidence = {
        "curves": draw_predictions(logits, targets, prepared),
        "importance": permutation_importance(module, prepared, targets, columns),
    }
    write_json(context.folder / EVIDENCE, evidence)
    return StageResult(facts=facts, headline=_headline(facts.metrics, len(targets)))


def evaluate_predictions(logits: np.ndarray, targets: np.ndarray, prepared: PreparedData) -> dict:
    """The metrics of the prepared data's task."""
    if prepared.task == "classification":
        return classification_metrics(logits, targets, prepared.classes)
    return regression_metrics(logits, targets)


def draw_predictions(logits: np.ndarray, targets: np.ndarray, prepared: PreparedData) -> dict:
    """The curves of the prepared data's task."""
    if prepared.task == "classification":
        return classification_curves(logits, targets, prepared.classes)
    return regression_points(logits, targets)


def transforms_of(folder: Path) -> Transforms | None:
    """The table's transforms that the prepare stage has left; None for anything else."""
    path = folder / TRANSFORMS
    found = load_transforms(json.loads(path.read_text(encoding="utf-8"))) if path.exists() else None
    return found if isinstance(found, Transforms) else None


def _headline(metrics: Mapping[str, float], rows: int) -> str:
    if "accuracy" in metrics:
        return f"test accuracy {metrics['accuracy']:.2%}, macro F1 {metrics['macro_f1']:.3f} on {rows:,} rows"
    r2 = f", R² {metrics['r2']:.3f}" if "r2" in metrics else ""
    return f"test RMSE {format_value(metrics['rmse'])}{r2} on {rows:,} rows"
