"""The compress stage, step by step:

    recipe       which ones, in which order       recipe_search.py
    candidates   one file each                    graph_recipes.py; training_recipes.py with retraining.py
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
from trainers.compress.accuracy_gate import gate_outputs
from trainers.compress.candidate import Baseline, Candidate
from trainers.compress.decision import choose_best, compare_with_dense
from trainers.compress.evidence import compression_facts, copy_accepted, copy_origin, headline
from trainers.compress.measure import measure_baseline
from trainers.compress.recipe_search import RecipeSearch
from trainers.compress.rows import CompressionRows, rows_of
from trainers.data.shards import PreparedData, open_prepared
from trainers.evaluate.stage import evaluate_predictions
from trainers.export.bundle import FLOAT_GRAPH
from trainers.export.float_graph import write_float_graph
from trainers.export.session import predict_graph

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
    search = _search(context, prepared, rows, baseline)
    context.progress(1, text="trying graph recipes")
    search.try_graph_recipes(baseline)
    if TRAINING & set(spec.compress.recipes):
        _try_training_recipes(search, context, prepared)
    chosen = choose_best(search.candidates, search.spec)
    copy_accepted(search.candidates, context.folder)
    copy_origin(chosen, search.candidates, context.folder)
    facts = compression_facts(search, chosen).model_copy(
        update={
            "parity": exported["parity"],
            "rival": compare_with_dense(search.candidates, chosen, search.spec),
            "test": confirm(search, chosen, prepared),
        }
    )
    return StageResult(facts=facts, headline=headline(search, chosen))


def _search(context: StageContext, prepared: PreparedData, rows: CompressionRows, baseline: Baseline) -> RecipeSearch:
    spec = context.run_resolved.spec.compress
    assert spec is not None, "the stage is skipped without it"
    return RecipeSearch(
        spec=spec,
        rows=rows,
        prepared=prepared.folder,
        baseline=baseline,
        cache=context.folder / TRIALS,
        events=context.events,
        stage=context.stage,
        ensure_ray=context.ensure_ray,
    )


def _try_training_recipes(search: RecipeSearch, context: StageContext, prepared: PreparedData) -> None:
    from trainers.compress.retraining import Retraining
    from trainers.compress.training_recipes import try_training_recipes
    from trainers.launch.ready_workers import trains_locally

    retraining = Retraining(
        resolved=context.run_resolved,
        prepared=prepared,
        weights=context.files("train"),
        folder=context.folder / MODELS,
        events=context.run.events,
        sink=context.events,
        stage=context.stage,
        ensure_ray=context.ensure_ray,
        local=trains_locally(context),
    )
    try_training_recipes(search, retraining)


def confirm(search: RecipeSearch, chosen: Candidate | None, prepared: PreparedData) -> dict[str, Any] | None:
    """The chosen variant on the test split, once: many candidates on one gate split make passes too easy.

    Nothing is chosen anew by it. None when the float graph stays.
    """
    if chosen is None:
        return None
    split = prepared.splits["test"]
    targets = np.asarray(split.targets)
    rows = replace(search.rows, gate=dict(split.inputs), gate_targets=targets)
    outputs = predict_graph(chosen.file, rows.gate)
    before = predict_graph(search.baseline.path, rows.gate)
    gate = gate_outputs(before, outputs, rows, search.spec.budget.max_drop)
    return {"gate": gate.to_dict(), "metrics": evaluate_predictions(outputs, targets, prepared)["metrics"]}
