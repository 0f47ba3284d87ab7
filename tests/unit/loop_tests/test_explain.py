"""`manta explain`: every auto with its reason, the equation, the curve, the memory; the same numbers as JSON."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from trainers.explain import main, plot

TEXT = """
version: 1
name: small
data: {source: {kind: sklearn, dataset: wine}}
train: {epochs: 3, workers: 2, batch_size_global: 24, batch_size_per_worker: 4, ema: {decay: 0.9}}
"""


@pytest.fixture
def spec(tmp_path: Path) -> Path:
    path = tmp_path / "small.yaml"
    path.write_text(TEXT)
    return path


def test_explain_prints_reasons_equation_curve_and_memory(spec: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([str(spec)]) == 0
    text = capsys.readouterr().out
    assert "2 workers × 4 micro-batch × 3 accumulation = 24 global batch" in text
    assert "model.family" in text
    assert "because" in text
    assert "Learning rate: peak 0.003" in text
    assert "activations" in text
    assert "MiB" in text


def test_explain_shows_the_micro_batch_that_fits_the_stated_memory(
    spec: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = "train.batch_size_per_worker"
    changes = ["--set", f"{path}=auto", "--set", "train.batch_size_global=120", "--set", "train.workers=1"]

    def explained(*more: str) -> tuple[dict[str, Any], dict[str, Any]]:
        assert main([str(spec), "--json", *changes, *more]) == 0
        facts = json.loads(capsys.readouterr().out)
        return facts, next(reason for reason in facts["reasons"] if reason["path"] == path)

    roomy, reason = explained()
    assert reason["value"] == 120, "the worker's share of the global batch"
    assert "bound by its share of the global batch" in reason["reason"]
    budget = roomy["memory"]["total"]  # less the head-room, so that some rows do not fit
    tight, reason = explained("--set", f"train.memory_per_worker_gib={budget / (1 << 30)}")
    assert 1 < reason["value"] < 120
    assert "bound by memory" in reason["reason"]
    assert tight["batch"]["batch_size_per_worker"] == reason["value"]
    assert tight["memory"]["total"] <= 0.9 * budget


def test_explain_as_json_has_the_same_numbers(spec: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([str(spec), "--json", "--set", "train.epochs=5"]) == 0
    facts = json.loads(capsys.readouterr().out)
    assert len(facts["batch"]["updates_of_epochs"]) == 5
    assert {reason["path"] for reason in facts["reasons"]} >= {"model.family", "train.precision"}
    assert facts["learning_rate"]["values"][-1] == pytest.approx(0.003 * 0.01)
    parts = ("parameters", "buffers", "gradients", "optimizer", "ema", "activations", "transient", "batch")
    assert facts["memory"]["total"] == sum(facts["memory"][part] for part in parts)


def test_explain_says_how_columns_are_read(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rows = "".join(f"{1 + row % 28}/02/2024,{row % 5} kg,{'no' if row % 2 else 'yes'}\n" for row in range(80))
    (tmp_path / "t.csv").write_text("day,weight,y\n" + rows)
    path = tmp_path / "s.yaml"
    path.write_text(f"version: 1\ndata: {{source: {{kind: csv, path: {tmp_path}/t.csv}}, target: y}}\n")
    assert main([str(path)]) == 0
    text = capsys.readouterr().out
    assert "column 'day': its values are dates written %d/%m/%Y, such as '1/02/2024'" in text
    assert "column 'weight': its values are numbers with the unit 'kg', such as '0 kg'" in text


def test_a_wrong_spec_ends_in_one_sentence_and_exit_code_2(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "wrong.yaml"
    path.write_text(TEXT.replace("wine", "wines"))
    assert main([str(path)]) == 2
    assert "wine" in capsys.readouterr().err


def test_curve_has_its_peak_at_the_top_and_its_axis() -> None:
    lines = plot([0.5, 1.0, 0.5, 0.0], 99)
    assert lines[0].endswith("| #")
    assert lines[-2].endswith("+----")
    assert "99 update" in lines[-1]
