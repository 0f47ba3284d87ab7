"""The compress stage: float graph -> candidates -> the gate accepts or rejects each.

Files: `model.onnx` (the float baseline), `model.<variant>.onnx` for every accepted candidate, `trials/` with every
finished trial, so that an interrupted stage goes on where it was.
"""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from cluster.bundle.files import WEIGHTS
from cluster.pipeline.stage import StageContext, StageResult
from cluster.spec.compress import TRAINING
from trainers.compress.gate import gate_outputs
from trainers.compress.judge import Judgment, make_baseline, predict_graph
from trainers.compress.ladder import BASELINE, Ladder, Parent
from trainers.compress.outcome import accepted_of, best_of, compression_facts, headline, rival_facts
from trainers.compress.rows import rows_of
from trainers.data.shards import PreparedData, open_prepared
from trainers.evaluate.stage import evaluate_predictions
from trainers.export.bundle import copy_graph
from trainers.export.float_graph import FLOAT_GRAPH, write_float_graph

TRIALS = "trials"
MODELS = "models"


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
        copy_graph(judgment.path, context.folder / judgment.variant().file)
    keep_origin(chosen, ladder, context.folder)
    facts = {
        **compression_facts(ladder, chosen),
        "parity": exported["parity"],
        "rival": rival_facts(ladder, chosen),
        "test": confirm(ladder, chosen, prepared),
    }
    return StageResult(facts=facts, headline=headline(ladder, chosen))


def keep_origin(chosen: Judgment | None, ladder: Ladder, folder: Path) -> None:
    """Put weights, plan and model section of the chosen variant's network beside the graphs: they rebuild it."""
    if chosen is None:
        return
    network = chosen.name if chosen.parent == BASELINE else chosen.parent
    made = next((one.path for one in ladder.judgments if one.name == network and one.path), None)
    for name in (WEIGHTS, "plan.json", "network.json"):
        if made is not None and (made.parent / name).exists():
            stem, _, suffix = name.partition(".")
            shutil.copyfile(made.parent / name, folder / f"{stem}.{network}.{suffix}")


def confirm(ladder: Ladder, chosen: Judgment | None, prepared: PreparedData) -> dict[str, Any] | None:
    """The chosen variant on the test split, once: many candidates on one gate split make passes too easy.

    Nothing is chosen anew by it. None when the float graph stays.
    """
    if chosen is None or chosen.path is None:
        return None
    split = prepared.splits["test"]
    targets = np.asarray(split.targets)
    rows = replace(ladder.rows, gate=dict(split.inputs), gate_targets=targets)
    outputs = predict_graph(chosen.path, rows.gate)
    before = predict_graph(ladder.baseline.path, rows.gate)
    gate = gate_outputs(before, outputs, rows, ladder.spec.budget.max_drop)
    return {"gate": gate.to_dict(), "metrics": evaluate_predictions(outputs, targets, prepared)["metrics"]}


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
