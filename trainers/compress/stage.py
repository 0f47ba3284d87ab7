"""The compress stage, step by step:

    recipes      which ones, in which order       ladder.py, model_steps.py
    candidates   one file for each                graph_trial.py (graphs), workshop.py (networks that are trained)
    measure      quality, independence, cost      measure.py
    accept       or reject, with the reason       decision.py
    choose       the best accepted one            decision.py
    evidence     graphs, facts, the test split    evidence.py, and here

Files: `model.onnx` (the float baseline), `model.<variant>.onnx` for every accepted candidate, `trials/` with every
finished trial, so that an interrupted stage goes on where it was.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np

from cluster.pipeline.stage import StageContext, StageResult
from cluster.spec.compress import TRAINING
from trainers.compress.candidate import Baseline, Candidate
from trainers.compress.decision import choose_best, compare_with_dense
from trainers.compress.evidence import compression_facts, copy_accepted, copy_origin, headline
from trainers.compress.gate import gate_outputs
from trainers.compress.ladder import Ladder
from trainers.compress.measure import measure_baseline, predict_graph
from trainers.compress.rows import CompressionRows, rows_of
from trainers.data.shards import PreparedData, open_prepared
from trainers.evaluate.stage import evaluate_predictions
from trainers.export.bundle import FLOAT_GRAPH
from trainers.export.float_graph import write_float_graph

TRIALS = "trials"
MODELS = "models"


def run_compression(context: StageContext) -> StageResult:
    """Export the float graph, try the recipes, keep what is accepted."""
    spec = context.run_resolved.spec
    if spec.compress is None:
        return StageResult(status="skipped", headline="compress is null: the float model is deployed")
    prepared = open_prepared(context.files("prepare"))
    rows = rows_of(prepared, calibration_rows=spec.compress.calibration_rows)
    context.progress(0, text="exporting the float graph")
    exported = write_float_graph(spec, prepared, context.files("train"), context.folder)
    baseline = measure_baseline(context.folder / FLOAT_GRAPH, rows)
    ladder = _ladder(context, prepared, rows, baseline)
    context.progress(1, text="trying graph recipes")
    ladder.try_graph_recipes(baseline)
    if TRAINING & set(spec.compress.recipes):
        _try_training_recipes(ladder, context, prepared)
    chosen = choose_best(ladder.candidates, ladder.spec)
    copy_accepted(ladder.candidates, context.folder)
    copy_origin(chosen, ladder.candidates, context.folder)
    facts = {
        **compression_facts(ladder, chosen),
        "parity": exported["parity"],
        "rival": compare_with_dense(ladder.candidates, chosen, ladder.spec),
        "test": confirm(ladder, chosen, prepared),
    }
    return StageResult(facts=facts, headline=headline(ladder, chosen))


def _ladder(context: StageContext, prepared: PreparedData, rows: CompressionRows, baseline: Baseline) -> Ladder:
    spec = context.run_resolved.spec.compress
    assert spec is not None, "the stage is skipped without it"
    return Ladder(
        spec=spec,
        rows=rows,
        prepared=prepared.folder,
        baseline=baseline,
        cache=context.folder / TRIALS,
        events=context.events,
        stage=context.stage,
    )


def _try_training_recipes(ladder: Ladder, context: StageContext, prepared: PreparedData) -> None:
    from trainers.compress.model_steps import try_training_recipes
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
    try_training_recipes(ladder, workshop)


def confirm(ladder: Ladder, chosen: Candidate | None, prepared: PreparedData) -> dict[str, Any] | None:
    """The chosen variant on the test split, once: many candidates on one gate split make passes too easy.

    Nothing is chosen anew by it. None when the float graph stays.
    """
    if chosen is None:
        return None
    split = prepared.splits["test"]
    targets = np.asarray(split.targets)
    rows = replace(ladder.rows, gate=dict(split.inputs), gate_targets=targets)
    outputs = predict_graph(chosen.file, rows.gate)
    before = predict_graph(ladder.baseline.path, rows.gate)
    gate = gate_outputs(before, outputs, rows, ladder.spec.budget.max_drop)
    return {"gate": gate.to_dict(), "metrics": evaluate_predictions(outputs, targets, prepared)["metrics"]}
