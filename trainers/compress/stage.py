"""The compress stage: float graph -> candidates -> the gate accepts or rejects each.

Files: `model.onnx` (the float baseline) and `model.<variant>.onnx` for every accepted candidate.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from cluster.bundle.manifest import Variant
from cluster.pipeline.stage import StageContext, StageResult
from cluster.telemetry.events import TrialUpdated
from trainers.compress.judge import Baseline, Judgment, judge, make_baseline
from trainers.compress.quantize import cpu_preset, preprocess, quantize_int8_static
from trainers.compress.rows import CompressionRows, rows_of
from trainers.data.shards import open_prepared
from trainers.export.float_graph import FLOAT_GRAPH, FLOAT_VARIANT, write_float_graph


def run_compression(context: StageContext) -> StageResult:
    """Export the float graph, try every recipe, keep what the gate accepts."""
    spec = context.run_resolved.spec
    if spec.compress is None:
        return StageResult(status="skipped", headline="compress is null: the float model is deployed")
    prepared = open_prepared(context.files("prepare"))
    rows = rows_of(prepared, calibration_rows=spec.compress.calibration_rows)
    context.progress(0, text="exporting the float graph")
    exported = write_float_graph(spec, prepared, context.files("train"), context.folder)
    baseline = make_baseline(context.folder / FLOAT_GRAPH, rows)
    judgments = []
    for done, recipe in enumerate(spec.compress.recipes):
        context.progress(done, len(spec.compress.recipes), "recipes", recipe)
        judgments.append(_try_recipe(recipe, context, baseline, rows))
    accepted = [judgment for judgment in judgments if judgment.accepted]
    chosen = min(accepted, key=lambda one: one.latency.p50_ms if one.latency else 0.0, default=None)
    facts = compression_facts(baseline, judgments, chosen, exported["parity"])
    return StageResult(facts=facts, headline=_headline(baseline, chosen, judgments))


def _try_recipe(recipe: str, context: StageContext, baseline: Baseline, rows: CompressionRows) -> Judgment:
    spec = context.run_resolved.spec.compress
    assert spec is not None, "the stage returns early without a compress section"
    parameters = {"recipe": recipe}
    context.events.emit(TrialUpdated(stage=context.stage, trial=recipe, state="running", parameters=parameters))
    path = context.folder / f"model.{recipe}.onnx"
    prepared = context.folder / "preprocessed.onnx.partial"
    preprocess(baseline.path, prepared)
    quantize_int8_static(prepared, path, rows.calibration, cpu_preset())
    prepared.unlink()
    judgment = judge(recipe, recipe, path, baseline, rows, spec)
    if not judgment.accepted:
        path.unlink()
    context.events.emit(trial_event(context.stage, judgment, parameters))
    return judgment


def trial_event(stage: str, judgment: Judgment, parameters: dict[str, Any]) -> TrialUpdated:
    """The record that a table of trials shows for a judged candidate."""
    entry = judgment.to_dict()
    numbers = ("accuracy", "drop", "size_bytes", "latency_ms_p50", "speedup")
    return TrialUpdated(
        stage=stage,
        trial=judgment.name,
        state="accepted" if judgment.accepted else "rejected",
        parameters=parameters,
        metrics={name: float(entry[name]) for name in numbers if entry[name] is not None},
        note=judgment.reason,
    )


def compression_facts(
    baseline: Baseline, judgments: list[Judgment], chosen: Judgment | None, parity: dict[str, Any]
) -> dict[str, Any]:
    """Facts of the stage: the contract with export, report and `manta show`."""
    accepted = [judgment for judgment in judgments if judgment.accepted]
    float_metrics: dict[str, float] = {}
    judged = next((one for one in judgments if one.gate and one.baseline_latency), None)
    if judged and judged.gate and judged.baseline_latency:
        float_metrics = {
            f"gate.{judged.gate.metric}": judged.gate.baseline,
            "latency_ms_p50": judged.baseline_latency.p50_ms,
            "latency_ms_p99": judged.baseline_latency.p99_ms,
        }
    float_variant = Variant(name=FLOAT_VARIANT, file=FLOAT_GRAPH, precision="fp32", metrics=float_metrics)
    variants = [float_variant, *(judgment.variant() for judgment in accepted)]
    return {
        "chosen": chosen.name if chosen else FLOAT_VARIANT,
        "variants": [variant.model_dump(mode="json") for variant in variants],
        "candidates": [judgment.to_dict() for judgment in judgments],
        "baseline": {"size_bytes": baseline.size_bytes, **float_metrics},
        "parity": parity,
    }


def accepted_files(facts: dict[str, Any], folder: Path) -> list[Path]:
    """The graph files that the facts of a finished stage name."""
    return [folder / variant["file"] for variant in facts["variants"]]


def _headline(baseline: Baseline, chosen: Judgment | None, judgments: list[Judgment]) -> str:
    if chosen is None:
        why = judgments[0].reason if judgments else "nothing was tried"
        return f"the float model stays: {judgments[0].name if judgments else 'no candidate'} {why}"
    assert chosen.gate is not None, "a chosen candidate was judged"
    assert chosen.latency is not None, "a chosen candidate was timed"
    return (
        f"{chosen.name}: {baseline.size_bytes / chosen.size_bytes:.1f}× smaller, {chosen.latency.speedup:.1f}× faster, "
        f"{chosen.gate.metric} {chosen.gate.baseline:.4f} -> {chosen.gate.candidate:.4f} ({chosen.gate.verdict})"
    )
