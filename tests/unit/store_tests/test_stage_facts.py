"""Run folders of an older version (`old_runs/`, written before facts had models) are read, and written as they were."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from cluster import entrypoints
from cluster.cli.app import call
from cluster.pipeline.reuse import stage_digest
from cluster.pipeline.stages import STAGES
from cluster.report import write_report
from cluster.store.run_folder import RunFolder
from cluster.store.stage_facts import CompressFacts, EvaluateFacts, PrepareFacts, SearchFacts, StageFacts, TrainFacts

OLD = Path(__file__).parent / "old_runs"
RUNS = [RunFolder(path) for path in sorted(OLD.iterdir())]
SETTLED = ("prepare", "evaluate", "export")
"""Stages that can be reused and whose sections no later stage changes, and no later version: the final spec gives the
digests that they had. The section of compress has lost a key since (`sparsity`), so that compress runs anew in an old
run; deploy and predict always run."""


def facts_of(run: RunFolder, stage: str) -> StageFacts | None:
    (row,) = (row for row in STAGES if row.name == stage)
    model: Any = entrypoints.load(row.facts)
    return model.of(run.records())


@pytest.mark.parametrize("run", RUNS, ids=lambda run: run.name)
def test_the_json_of_every_stages_facts_stays_as_it_was(run: RunFolder) -> None:
    records = run.records()
    assert len(records) >= 5
    for name, record in records.items():
        facts = facts_of(run, name)
        assert facts is not None
        assert json.dumps(facts.to_json(), sort_keys=True) == json.dumps(record.facts, sort_keys=True), name


@pytest.mark.parametrize("run", RUNS, ids=lambda run: run.name)
def test_digests_stay_as_they_were(run: RunFolder) -> None:
    resolved, records = run.read_resolved(), run.records()
    assert resolved is not None
    for row in STAGES:
        if row.name in records and row.name in SETTLED and not (row.name == "prepare" and run.name == "flat"):
            assert stage_digest(row, resolved.spec, records) == records[row.name].inputs_digest, row.name


@pytest.mark.parametrize("run", RUNS, ids=lambda run: run.name)
def test_what_the_stages_changed_is_what_their_records_say(run: RunFolder) -> None:
    """Applied to the finished run, which has the changes already, they give the same run."""
    resolved, records = run.read_resolved(), run.records()
    assert resolved is not None
    for name, record in records.items():
        facts = facts_of(run, name)
        assert facts is not None
        changed = facts.changes(resolved, record.details)
        assert changed.spec == resolved.spec, name
        assert {one.path: one for one in changed.reasons} == {one.path: one for one in resolved.reasons}, name


def test_facts_have_their_types() -> None:
    classes, quantity = (run.records() for run in reversed(RUNS))
    searched, trained = SearchFacts.of(classes), TrainFacts.of(classes)
    assert searched is not None
    assert set(searched.best) == {"train.optimizer.learning_rate"}
    assert trained is not None
    assert trained.updates > 0
    compressed, evaluated = CompressFacts.of(classes), EvaluateFacts.of(classes)
    assert compressed is not None
    assert compressed.variants[0].name == "fp32"
    assert evaluated is not None
    assert evaluated.metrics["accuracy"] > 0.5
    prepared = PrepareFacts.of(quantity)
    assert prepared is not None
    assert prepared.target is not None
    assert prepared.found == {"data.target_transform": prepared.target.kind}
    assert CompressFacts.of(quantity) is None


@pytest.mark.parametrize("run", RUNS, ids=lambda run: run.name)
def test_an_old_run_is_shown(run: RunFolder, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    copy = RunFolder(tmp_path / run.name)
    shutil.copytree(run.path, copy.path)
    assert call(["show", run.name, "--runs-dir", str(tmp_path), "--json"]) == 0
    shown = json.loads(capsys.readouterr().out)
    assert shown["state"] == "done"
    assert set(shown["metrics"]) & {"accuracy", "rmse"}
    assert ">finished<" in write_report(copy).read_text(encoding="utf-8")
