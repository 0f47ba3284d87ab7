"""The train stage: the resolved run's training on Ray Train workers, or in one process of this host."""

from __future__ import annotations

import importlib
from contextlib import suppress
from functools import partial
from typing import Any

from cluster.pipeline.stage import StageContext, StageResult
from cluster.spec.resolve import FOUND_BY_SEARCH, ResolvedRun
from cluster.store.stage_facts import FOUND_REASONS, TrainFacts
from cluster.telemetry.events import Message, read_events
from trainers.data.shard_store import prepared_of
from trainers.data.shards import open_prepared
from trainers.diagnose import diagnose, findings_as_facts
from trainers.diagnose.reference import reference_of
from trainers.launch.earlier import checkpoints_of, forget_others
from trainers.launch.fit import launch_fit
from trainers.launch.ready_workers import ReadyWorkers, trains_locally
from trainers.loop import FitRequest, FitResult
from trainers.loop.request import SizingRequest
from trainers.loop.tuner.learning_rate_finder import RANGE_REASON

MICRO_BATCH = "train.batch_size_per_worker"
LEARNING_RATE = "train.optimizer.learning_rate"
LOADED_MEANWHILE = {
    "evaluate": ("trainers.evaluate.stage",),
    "export": ("trainers.export.stage", "torch.onnx", "torch._dynamo"),
}
"""Stage that comes later -> modules that it begins with."""


def run_training(context: StageContext) -> StageResult:
    """Train, or go on from the last checkpoint of the same training. Writes `weights.safetensors`, `history.json`."""
    resolved, checkpoints = context.run_resolved, checkpoints_of(context)
    request = FitRequest(
        train=resolved.spec.train,
        batch=resolved.batch,
        model=resolved.spec.model,
        seed=resolved.spec.seed,
        prepared=prepared_of(context),
        stage=context.stage,
        checkpoints=checkpoints,
        sizing=_sizing(context),
        traces=context.run.path / "traces",
        find_learning_rate=resolved.spec.train.find_learning_rate and not _searched(resolved, LEARNING_RATE),
    )
    try:
        result = _fit(context, request)
    finally:
        forget_others(checkpoints)
    found = _found(result)
    metrics = {name: value for name, value in result.metrics.items() if value == value and abs(value) != float("inf")}
    return StageResult(
        facts=TrainFacts(
            metrics=metrics,
            best_epoch=result.best_epoch,
            updates=result.updates,
            skipped_updates=result.skipped_updates,
            num_parameters=result.num_parameters,
            stopped_early=result.stopped_early,
            found={path: value for path, (value, _) in found.items()},
        ),
        headline=_headline(metrics, result.best_epoch, len(result.history), resolved.spec.train.best.metric),
        details={
            **result.details,
            FOUND_REASONS: {path: why for path, (_, why) in found.items()},
            "findings": _diagnosis(context),
        },
    )


def _fit(context: StageContext, request: FitRequest) -> FitResult:
    """On the workers that were started early, or on ones that start now."""
    ready = context.early or ReadyWorkers(local=trains_locally(context), alone=context.owns_host)
    try:
        if not ready.local:
            context.ensure_ray()
        ready.meanwhile = partial(_load_later_stages, context)
        return launch_fit(request, events=context.run.events, folder=context.folder, ready=ready)
    finally:
        ready.close()


def _load_later_stages(context: StageContext) -> None:
    """Their libraries take seconds to import, in which this thread would only wait for the workers.

    A library that cannot be imported is for its own stage to say: the training goes on.
    """
    for stage in LOADED_MEANWHILE.keys() & context.later:
        for module in LOADED_MEANWHILE[stage]:
            with suppress(ImportError):
                importlib.import_module(module)


def _diagnosis(context: StageContext) -> list[dict[str, Any]]:
    """What the curves mean, said to whoever watches, and JSON-able for the stage's record."""
    reference = reference_of(open_prepared(prepared_of(context)))
    spec = context.run_resolved.spec
    findings = diagnose(read_events(context.run.events), spec, stage=context.stage, reference=reference)
    for finding in findings:
        context.events.emit(Message(stage=context.stage, text=finding.text))
    if any(finding.change for finding in findings):
        command = f"manta diagnose {context.run.path} --apply new.yaml"
        context.events.emit(Message(stage=context.stage, text=f"'{command}' writes a spec with the remedies."))
    return findings_as_facts(findings)


def _sizing(context: StageContext) -> SizingRequest | None:
    """A probe when training starts, where the spec says `auto` and no search has decided."""
    train = context.run_resolved.spec.train
    if context.spec.train.batch_size_per_worker != "auto" or _searched(context.run_resolved, MICRO_BATCH):
        return None
    budget = train.memory_per_worker_gib
    return SizingRequest(None if budget is None else int(budget * (1 << 30)), context.run.path / "sizing")


def _searched(resolved: ResolvedRun, path: str) -> bool:
    return any(reason.path == path and reason.reason == FOUND_BY_SEARCH for reason in resolved.reasons)


def _found(result: FitResult) -> dict[str, tuple[Any, str]]:
    """What the workers found out when they started: path -> (value, reason)."""
    found: dict[str, tuple[Any, str]] = {}
    if result.micro_batch_reason:
        found[MICRO_BATCH] = (result.micro_batch, result.micro_batch_reason)
    if result.learning_rate_found is not None:
        found[LEARNING_RATE] = (result.learning_rate_found, RANGE_REASON)
    return found


def _headline(metrics: dict[str, float], best_epoch: int, epochs: int, metric: str) -> str:
    kept = f"epoch {best_epoch} of {epochs}, {metric} {metrics.get(metric, float('nan')):.4g}"
    if "validation.accuracy" in metrics and metric != "validation.accuracy":
        return f"{kept}, validation accuracy {metrics['validation.accuracy']:.2%}"
    return kept
