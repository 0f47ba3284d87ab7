"""The evaluate stage: the trained module on the test split, which nothing before this has read."""

from __future__ import annotations

import numpy as np

from cluster.pipeline.stage import StageContext, StageResult
from trainers.data.shards import PreparedData, open_prepared
from trainers.evaluate.metrics import classification_metrics, regression_metrics
from trainers.evaluate.predict import predict_torch
from trainers.export.module import load_module


def run_evaluation(context: StageContext) -> StageResult:
    """Predict the test split with the trained weights. Writes `predictions.npz` (logits, targets)."""
    prepared = open_prepared(context.files("prepare"))
    split = prepared.splits["test"]
    model, trained = context.run_resolved.spec.model, context.files("train")
    module = load_module(model, prepared.inputs, prepared.num_outputs, trained, prepared.target)
    logits = predict_torch(module, split.inputs)
    targets = np.asarray(split.targets)
    np.savez(context.folder / "predictions.npz", logits=logits, targets=targets)
    facts = evaluate_predictions(logits, targets, prepared)
    return StageResult(facts=facts, headline=_headline(facts["metrics"], len(targets)))


def evaluate_predictions(logits: np.ndarray, targets: np.ndarray, prepared: PreparedData) -> dict:
    """The metrics of the prepared data's task."""
    if prepared.task == "classification":
        return classification_metrics(logits, targets, prepared.classes)
    return regression_metrics(logits, targets)


def _headline(metrics: dict[str, float], rows: int) -> str:
    if "accuracy" in metrics:
        return f"test accuracy {metrics['accuracy']:.2%}, macro F1 {metrics['macro_f1']:.3f} on {rows:,} rows"
    return f"test RMSE {metrics['rmse']:.4g}, R² {metrics.get('r2', float('nan')):.3f} on {rows:,} rows"
