"""`batch_size_per_worker: auto` through the train stage, on Ray Train workers."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from cluster.pipeline.stage import StageContext
from cluster.probe import host_facts
from cluster.spec.load import load_spec
from cluster.store.run_folder import RunFolder, StageRecord
from cluster.telemetry.events import Message, read_events
from trainers.data.stages import check_data, prepare_data
from trainers.launch.stage import LEARNING_RATE, MICRO_BATCH, run_training

SPEC = """
version: 1
name: auto
data: {source: {kind: sklearn, dataset: wine}}
model: {family: mlp, hidden: [512]}
train: {epochs: 1, workers: 2, batch_size_global: 64, memory_per_worker_gib: GIB, find_learning_rate: true}
compress: null
serve: null
"""
GIB = 0.00025  # 16 rows take 0.00019 GiB, 32 take 0.00025, and a tenth is kept free


@pytest.mark.slow
def test_auto_is_probed_by_the_train_stage_and_written_with_its_reason(ray_local: str, tmp_path: Path) -> None:
    (tmp_path / "auto.yaml").write_text(SPEC.replace("GIB", str(GIB)))
    run = RunFolder(tmp_path / "auto")
    run.path.mkdir()
    context = StageContext(
        stage="check",
        run=run,
        spec=load_spec(tmp_path / "auto.yaml", []),
        resolved=None,
        host=host_facts(),
        folder=tmp_path / "check",
        digest="d" * 64,
        records={},
        events=run.sink(),
    )
    resolved = check_data(context).resolved
    assert resolved is not None
    assert resolved.batch.batch_size_per_worker == 32, "the plan"
    run.stage("prepare").mkdir(parents=True)
    prepared = prepare_data(replace(context, stage="prepare", resolved=resolved, folder=run.stage("prepare")))
    record = StageRecord(
        stage="prepare",
        inputs_digest="",
        status="done",
        facts=prepared.facts.to_json(),
        started_unix_s=0.0,
        duration_s=0.0,
    )
    (tmp_path / "train").mkdir()
    train = replace(context, stage="train", resolved=resolved, folder=tmp_path / "train", records={"prepare": record})
    result = run_training(train)
    sized = result.facts.changes(resolved, result.details)
    (reason,) = (reason for reason in sized.reasons if reason.path == MICRO_BATCH)
    rows = reason.value
    assert 1 < rows < 32
    assert reason.reason.startswith(f"{rows} rows a worker fit (bound by memory)")
    assert sized.spec.train.batch_size_per_worker == rows
    plan = sized.batch
    assert plan.batch_size_per_worker == rows
    assert plan.workers * rows * plan.accumulation_steps >= 64, "accumulation makes up for it"
    rate = sized.spec.train.optimizer.learning_rate
    assert rate != resolved.spec.train.optimizer.learning_rate
    assert any(reason.path == LEARNING_RATE and "range test" in reason.reason for reason in sized.reasons)
    assert result.facts.to_json()["found"] == {MICRO_BATCH: rows, LEARNING_RATE: rate}, (
        "so that a run that is reused says the same"
    )
    said = [record.text for record in read_events(run.events) if isinstance(record, Message)]
    assert any(f"micro-batches of {rows} rows a worker" in text for text in said)
    assert len(list((run.path / "sizing").iterdir())) == 1
