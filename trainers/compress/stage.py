"""The compress stage: float graph -> candidates -> the gate accepts or rejects each.

Files: `model.onnx` (the float baseline), `model.<variant>.onnx` for every accepted candidate, `trials/` with every
finished trial, so that an interrupted stage goes on where it was.
"""

from __future__ import annotations

import shutil
from typing import Any

from cluster.bundle.manifest import Variant
from cluster.pipeline.stage import StageContext, StageResult
from trainers.compress.judge import Baseline, Judgment, make_baseline, objective
from trainers.compress.ladder import BASELINE, Ladder, Parent
from trainers.compress.rows import rows_of
from trainers.data.shards import PreparedData, open_prepared
from trainers.export.float_graph import FLOAT_GRAPH, write_float_graph

TRIALS = "trials"
MODELS = "models"
TRAINING = frozenset({"prune", "distill", "sparse"})
WITHIN = 1.1  # of the best: candidates this near are equal in cost, and the more accurate one wins


def run_compression(context: StageContext) -> StageResult:
    """Export the float graph, climb the ladder, keep what the gate accepts."""
    spec = context.run_resolved.spec
    if spec.compress is None:
        return StageResult(status="skipped", headline="compress is null: the float model is deployed")
    prepared = open_prepared(context.files("prepare"))
    rows = rows_of(prepared, calibration_rows=spec.compress.calibration_rows)
    context.progress(0, text="exporting the float graph")
    exported = write_float_graph(spec, prepared, context.files("train"), context.folder)
    baseline = make_baseline(context.folder / FLOAT_GRAPH, rows)
    context.progress(1, text="trying graph recipes")
    ladder = Ladder(
        spec=spec.compress,
        rows=rows,
        prepared=prepared.folder,
        baseline=baseline,
        cache=context.folder / TRIALS,
        events=context.events,
        stage=context.stage,
    )
    ladder.climb(Parent(BASELINE, baseline.path))
    if TRAINING & set(spec.compress.recipes):
        _run_training_recipes(ladder, context, prepared)
    chosen = best_of(ladder)
    for judgment in accepted_of(ladder):
        assert judgment.path is not None, "an accepted candidate has a file"
        shutil.copyfile(judgment.path, context.folder / judgment.variant().file)
    facts = compression_facts(ladder, chosen, exported)
    return StageResult(facts=facts, headline=headline(baseline, chosen, ladder))


def _run_training_recipes(ladder: Ladder, context: StageContext, prepared: PreparedData) -> None:
    from trainers.compress.model_steps import run_model_steps
    from trainers.compress.workshop import Workshop

    workshop = Workshop(
        resolved=context.run_resolved,
        prepared=prepared,
        weights=context.files("train"),
        folder=context.folder / MODELS,
        events=context.run.events,
        sink=context.events,
        stage=context.stage,
    )
    run_model_steps(ladder, workshop)


def accepted_of(ladder: Ladder) -> list[Judgment]:
    return [judgment for judgment in ladder.judgments if judgment.accepted]


def best_of(ladder: Ladder) -> Judgment | None:
    """The accepted candidate with least of what the target minimizes, or None; of equal ones the most accurate."""
    accepted = {id(one): objective(one, ladder.spec) for one in accepted_of(ladder)}
    if not accepted:
        return None
    least = min(accepted.values())
    near = [one for one in accepted_of(ladder) if accepted[id(one)] <= WITHIN * least]
    return max(near, key=lambda one: (one.gate.candidate if one.gate else 0.0, -accepted[id(one)]))


def compression_facts(ladder: Ladder, chosen: Judgment | None, exported: dict[str, Any]) -> dict[str, Any]:
    """Facts of the stage: the contract with export, report and `manta show`."""
    measured = next((one for one in ladder.judgments if one.gate and one.baseline_cost), None)
    metrics: dict[str, float] = {}
    if measured and measured.gate and measured.baseline_cost:
        metrics = {
            f"gate.{measured.gate.metric}": measured.gate.baseline,
            **{name: float(value) for name, value in measured.baseline_cost.to_dict().items()},
        }
    float_variant = Variant(name=BASELINE, file=FLOAT_GRAPH, precision="fp32", metrics=metrics)
    variants = [float_variant, *(judgment.variant() for judgment in accepted_of(ladder))]
    return {
        "chosen": chosen.name if chosen else BASELINE,
        "variants": [variant.model_dump(mode="json") for variant in variants],
        "candidates": [judgment.to_dict() for judgment in ladder.judgments],
        "skipped": ladder.skipped,
        "baseline": {"size_bytes": ladder.baseline.size_bytes, **metrics},
        "parity": exported["parity"],
    }


def headline(baseline: Baseline, chosen: Judgment | None, ladder: Ladder) -> str:
    """One line for the display."""
    if chosen is None:
        first = next(iter(ladder.judgments), None)
        return f"the float model stays: {first.name} {first.reason}" if first else "the float model stays"
    assert chosen.gate is not None, "a chosen candidate was judged"
    assert chosen.cost is not None, "a chosen candidate was timed"
    assert chosen.size_bytes is not None, "a chosen candidate has a file"
    return (
        f"{chosen.name}: {baseline.size_bytes / chosen.size_bytes:.1f}× smaller, {chosen.cost.speedup:.1f}× faster, "
        f"{chosen.gate.metric} {chosen.gate.baseline:.4f} -> {chosen.gate.candidate:.4f} ({chosen.gate.verdict})"
    )
