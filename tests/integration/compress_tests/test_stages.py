"""evaluate -> compress -> export on a real trained network: what the contracts between the stages promise."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from cluster.bundle.files import open_bundle
from cluster.pipeline.stage import StageContext, StageResult
from cluster.store.run_folder import StageRecord
from cluster.telemetry.events import ListSink, TrialUpdated
from trainers.compress.stage import run_compression
from trainers.evaluate.stage import run_evaluation
from trainers.export.session import open_session, run_batches
from trainers.export.stage import run_export


def record_of(stage: str, result: StageResult) -> StageRecord:
    return StageRecord(
        stage=stage,
        inputs_digest="0" * 64,
        facts=result.facts.to_json(),
        started_unix_s=0.0,
        duration_s=0.0,
        status=result.status,
    )


def run_until_export(make_context: Any, **sections: Any) -> tuple[StageContext, dict[str, StageRecord]]:
    records: dict[str, StageRecord] = {}
    for name, function in (("evaluate", run_evaluation), ("compress", run_compression), ("export", run_export)):
        context = make_context(name, records, **sections)
        if name == "compress" and context.spec.compress is None:
            continue
        records[name] = record_of(name, function(context))
    return context, records


def test_a_trained_run_becomes_a_bundle_that_answers_like_torch(make_context: Any) -> None:
    context, records = run_until_export(make_context)
    bundle = open_bundle(context.run.bundle)
    metrics = records["evaluate"].facts["metrics"]
    assert metrics["accuracy"] > 0.95
    assert bundle.manifest.metrics["test.accuracy"] == metrics["accuracy"]
    assert bundle.manifest.default_variant == records["compress"].facts["chosen"]
    with np.load(context.files("evaluate") / "predictions.npz") as arrays:
        assert arrays["logits"].shape == (270, 10)
    evidence = json.loads((context.files("evaluate") / "evidence.json").read_text())
    assert [curve["kind"] for curve in evidence["curves"]["roc"]] == ["micro", "macro", *["class"] * 10]
    assert evidence["importance"] is None, "pixels are no columns"
    assert records["evaluate"].facts["baseline"]["constant"]["metrics"]["accuracy"] < 0.2
    sample = bundle.sample()
    assert {variant.rows_independent for variant in bundle.manifest.variants} == {True}
    for variant in bundle.manifest.variants:
        rows = {"image": sample["inputs/image"]}
        answers = run_batches(open_session(bundle.path(variant.file)), rows)
        assert np.array_equal(answers["logits"], sample[f"outputs/{variant.name}/logits"])
    assert {"evidence/parity.json", "evidence/compress.json", "weights.safetensors"} <= set(bundle.manifest.files)


def test_without_a_compress_section_the_float_graph_alone_is_exported(make_context: Any) -> None:
    context, records = run_until_export(make_context, compress=None)
    bundle = open_bundle(context.run.bundle)
    assert [(variant.name, variant.rows_independent) for variant in bundle.manifest.variants] == [("fp32", True)]
    evidence = json.loads((context.run.bundle / "evidence" / "compress.json").read_text(encoding="utf-8"))
    assert evidence["baseline"]["independence"]["independent"] is True
    assert records["export"].facts["parity"]["logits"]["max_abs_diff"] < 1e-3


def test_every_candidate_is_an_event_with_its_reason_and_rejected_ones_leave_no_file(make_context: Any) -> None:
    context = make_context("compress", compress={"budget": {"max_drop": 1e-6}, "on_inconclusive": "keep_baseline"})
    result = run_compression(context)
    assert result.facts.to_json()["chosen"] == "fp32"
    assert [path.name for path in context.folder.glob("*.onnx")] == ["model.onnx"]
    assert isinstance(context.events, ListSink)
    last = [event for event in context.events.events if isinstance(event, TrialUpdated)][-1]
    assert last.state == "rejected"
    assert last.note


@pytest.mark.parametrize("rows", [1, 2, 7])
def test_the_exported_file_takes_any_number_of_rows(digits_graph: Path, rows: int) -> None:
    answers = run_batches(open_session(digits_graph), {"image": np.zeros((rows, 1, 8, 8), np.float32)})
    assert answers["logits"].shape == (rows, 10)
