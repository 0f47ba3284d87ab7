"""The train stage: the resolved run's training on Ray Train workers."""

from __future__ import annotations

from cluster.pipeline.stage import StageContext, StageResult
from cluster.spec.resolve import FOUND_BY_SEARCH, ResolvedRun
from cluster.telemetry.events import Message, read_events
from trainers.diagnose import diagnose, findings_as_facts
from trainers.launch.fit import launch_fit
from trainers.loop import FitRequest, FitResult
from trainers.loop.request import SizingRequest

MICRO_BATCH = "train.batch_size_per_worker"


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
        sizing=_sizing(context),
    )
    result = launch_fit(request, events=context.run.events, folder=context.folder)
    findings = diagnose(read_events(context.run.events), resolved.spec, stage=context.stage)
    for finding in findings:
        context.events.emit(Message(stage=context.stage, text=finding.text))
    if any(finding.change for finding in findings):
        command = f"python -m trainers.diagnose {context.run.path} --apply new.yaml"
        context.events.emit(Message(stage=context.stage, text=f"'{command}' writes a spec with the remedies."))
    metrics = {name: value for name, value in result.metrics.items() if value == value and abs(value) != float("inf")}
    return StageResult(
        facts={
            "metrics": metrics,
            "best_epoch": result.best_epoch,
            "updates": result.updates,
            "skipped_updates": result.skipped_updates,
            "num_parameters": result.num_parameters,
            "stopped_early": result.stopped_early,
            "found": {MICRO_BATCH: result.micro_batch} if result.micro_batch_reason else {},
        },
        headline=_headline(metrics, result.best_epoch, len(result.history), resolved.spec.train.best.metric),
        details={
            **result.details,
            "micro_batch_reason": result.micro_batch_reason,
            "findings": findings_as_facts(findings),
        },
        resolved=_sized(resolved, result),
    )


def _sizing(context: StageContext) -> SizingRequest | None:
    """A probe when training starts, where the spec says `auto` and no search has decided."""
    train = context.run_resolved.spec.train
    searched = any(r.path == MICRO_BATCH and r.reason == FOUND_BY_SEARCH for r in context.run_resolved.reasons)
    if context.spec.train.batch_size_per_worker != "auto" or searched:
        return None
    budget = train.memory_per_worker_gib
    return SizingRequest(None if budget is None else int(budget * (1 << 30)), context.run.path / "sizing")


def _sized(resolved: ResolvedRun, result: FitResult) -> ResolvedRun | None:
    """The run with the micro-batch that was found."""
    if not result.micro_batch_reason:
        return None
    return resolved.with_values({MICRO_BATCH: result.micro_batch}, why=result.micro_batch_reason)


def _headline(metrics: dict[str, float], best_epoch: int, epochs: int, metric: str) -> str:
    kept = f"epoch {best_epoch} of {epochs}, {metric} {metrics.get(metric, float('nan')):.4g}"
    if "validation.accuracy" in metrics and metric != "validation.accuracy":
        return f"{kept}, validation accuracy {metrics['validation.accuracy']:.2%}"
    return kept
