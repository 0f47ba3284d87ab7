"""The evaluate stage on a table: files, facts, the same bytes each time, and a report that is drawn from them."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from cluster.report import write_report
from cluster.store.run_folder import RECORD, RunFolder, StageRecord
from tests.unit.data_tests.making import context, prepare, run_spec, write_table
from trainers.data.shards import open_prepared
from trainers.data.stages import check_data
from trainers.evaluate.stage import run_evaluation
from trainers.models import build_model


@pytest.mark.parametrize("target", ["y", "age"])
def test_a_table_is_evaluated_with_its_baseline_and_columns_and_drawn(tmp_path: Path, target: str) -> None:
    source = {"kind": "csv", "path": str(write_table(tmp_path / "t.csv"))}
    task = "classification" if target == "y" else "regression"
    spec = run_spec(source, target=target, task=task)
    run = RunFolder(tmp_path / "run")
    resolved: Any = check_data(context(run.stage("check"), spec)).resolved
    prepare(run.stage("prepare"), spec)
    prepared = open_prepared(run.stage("prepare"))
    torch.manual_seed(0)
    network = build_model(resolved.spec.model, prepared.inputs, prepared.num_outputs, prepared.target)
    run.stage("train").mkdir(parents=True)
    save_file(network.state_dict(), run.stage("train") / "weights.safetensors")
    made = replace(context(run.stage("evaluate"), spec, "evaluate", resolved), run=run)

    result = run_evaluation(made)

    evidence = json.loads((run.stage("evaluate") / "evidence.json").read_text())
    assert result.facts.to_json()["baseline"]["model"]["name"] == "boosted trees"
    wanted = {"age", "size", "color", "y"} - {target}
    assert {row["name"] for row in evidence["importance"]["columns"]} == wanted
    with np.load(run.stage("evaluate") / "predictions.npz") as found:
        truth = found["targets"]
    if task == "regression":
        assert set(evidence["curves"]["actual"]) <= {float(f"{value:.6g}") for value in truth}, "in the target's unit"
        assert result.facts.to_json()["baseline"]["constant"]["answer"] == pytest.approx(42, abs=3)
    again = run_evaluation(replace(made, folder=tmp_path))
    assert again.facts == result.facts
    assert (tmp_path / "evidence.json").read_bytes() == (run.stage("evaluate") / "evidence.json").read_bytes()

    record = StageRecord(
        stage="evaluate", inputs_digest="x", facts=result.facts.to_json(), started_unix_s=0.0, duration_s=1.0
    )  # fmt: skip
    (run.stage("evaluate") / RECORD).write_text(record.model_dump_json(), encoding="utf-8")
    html = write_report(run).read_text(encoding="utf-8")
    assert "<h3>Importance of the columns</h3>" in html
    assert ("<h3>ROC</h3>" in html) == (task == "classification")
    assert ("<h3>Residuals</h3>" in html) == (task == "regression")
    assert "baseline: boosted trees" in html
