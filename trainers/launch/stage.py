"""The train stage: the resolved run's training on Ray Train workers."""

from __future__ import annotations

from cluster.pipeline.stage import StageContext, StageResult
from trainers.launch.fit import launch_fit
from trainers.loop import FitRequest


def run_training(context: StageContext) -> StageResult:
    """Train, or go on from the last checkpoint of the same inputs. Writes `weights.safetensors`, `history.json`."""
    resolved = context.run_resolved
    request = FitRequest(
        train=resolved.spec.train,
        batch=resolved.batch,
        model=resolved.spec.model,
        seed=resolved.spec.seed,
        prepared=context.files("prepare"),
        stage=context.stage,
        checkpoints=context.run.checkpoints / context.digest[:16],
    )
    result = launch_fit(request, events=context.run.events, folder=context.folder)
    metrics = {name: value for name, value in result.metrics.items() if value == value and abs(value) != float("inf")}
    return StageResult(
        facts={
            "metrics": metrics,
            "best_epoch": result.best_epoch,
            "updates": result.updates,
            "skipped_updates": result.skipped_updates,
            "num_parameters": result.num_parameters,
            "stopped_early": result.stopped_early,
        },
        headline=_headline(metrics, result.best_epoch, len(result.history), resolved.spec.train.best.metric),
        details=dict(result.details),
    )


def _headline(metrics: dict[str, float], best_epoch: int, epochs: int, metric: str) -> str:
    kept = f"epoch {best_epoch} of {epochs}, {metric} {metrics.get(metric, float('nan')):.4g}"
    if "validation.accuracy" in metrics and metric != "validation.accuracy":
        return f"{kept}, validation accuracy {metrics['validation.accuracy']:.2%}"
    return kept
