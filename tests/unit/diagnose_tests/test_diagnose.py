"""Findings from records: each has its evidence and a change that makes a valid spec."""

from __future__ import annotations

from pathlib import Path

import yaml

from cluster.spec import load_spec, parse_spec
from cluster.store.run_folder import RunFolder
from cluster.telemetry.events import Diagnostics, EpochFinished, Record, TrainStep, UpdateSkipped
from trainers.diagnose import diagnose
from trainers.diagnose.__main__ import apply_findings, render

TEXT = "version: 1\ndata: {source: {kind: sklearn, dataset: digits}}\ntrain: {epochs: 8}\n"
SPEC = parse_spec(TEXT)


def epochs(train: list[float], validation: list[float]) -> list[Record]:
    return [
        EpochFinished(stage="train", epoch=i + 1, epochs=8, update=i, metrics={"train.loss": t, "validation.loss": v})
        for i, (t, v) in enumerate(zip(train, validation, strict=True))
    ]


def steps(losses: list[float], **extra: float) -> list[Record]:
    return [
        TrainStep(
            stage="train",
            epoch=1,
            epochs=8,
            update=i,
            updates=99,
            loss=loss,
            learning_rate=0.1,
            samples_per_s=1.0,
            extra=extra,
        )
        for i, loss in enumerate(losses)
    ]


def look(**values: dict[str, float]) -> list[Record]:
    return [Diagnostics(stage="train", update=1, values={k.replace("_", "."): v for k, v in values.items()})] * 4


def codes(records: list[Record]) -> list[str]:
    return [finding.code for finding in diagnose(records, SPEC)]


def test_overfitting_needs_a_rising_validation_and_a_falling_training_loss() -> None:
    falling = [1.0, 0.6, 0.4, 0.2, 0.1, 0.05]
    found = diagnose(epochs(falling, [1.0, 0.7, 0.6, 0.7, 0.8, 0.9]), SPEC)
    assert [finding.code for finding in found] == ["overfitting"]
    assert found[0].evidence["best_epoch"] == 3
    assert "epoch 3" in found[0].text
    assert codes(epochs([1.0, 0.9, 0.8, 0.9, 1.0, 1.1], [1.0, 0.7, 0.6, 0.7, 0.8, 0.9])) == []


def test_underfitting_is_a_run_that_ended_while_it_still_learned() -> None:
    found = diagnose(epochs([1.0, 0.9, 0.8, 0.7, 0.6, 0.5], [1.0, 0.9, 0.8, 0.7, 0.6, 0.5]), SPEC)
    assert [finding.code for finding in found] == ["underfitting"]
    assert found[0].change == {"train.epochs": 16}
    flat = [1.0, 0.6, 0.5, 0.5, 0.5, 0.5]
    assert codes(epochs(flat, flat)) == []


def test_learning_rate_too_high_by_spikes_or_by_what_an_update_changes() -> None:
    assert codes(steps([1.0, 0.9, 0.8, 4.0, 0.8])) == ["learning_rate_high"]
    assert codes(look(fc_weight={"update_ratio": 0.3, "weight_norm": 2.0})) == ["learning_rate_high"]
    assert codes(look(fc_weight={"update_ratio": 1e-3, "weight_norm": 2.0})) == []


def test_learning_rate_too_low_is_that_nothing_moves() -> None:
    assert codes(look(fc_weight={"update_ratio": 1e-7, "weight_norm": 2.0})) == ["learning_rate_low"]


def test_dead_units_and_waiting_for_data() -> None:
    assert codes(look(act={"dead_share": 0.6})) == ["dead_units"]
    assert codes(steps([1.0, 0.9], data_wait_share=0.5)) == ["data_bound"]


def test_skipped_updates_are_a_finding_with_their_rows() -> None:
    bad = [
        UpdateSkipped(stage="train", epoch=epoch, window=3, update=9 * epoch, rows=[17, 203], num_rows=2)
        for epoch in (1, 2)
    ]
    found = diagnose([*steps([1.0, 0.9, 0.8]), *bad], SPEC)
    assert [finding.code for finding in found] == ["updates_skipped"]
    assert "2 of 4 updates" in found[0].text
    assert "rows 17, 203 " in found[0].text
    assert found[0].change == {}
    own = diagnose([*steps([1.0, 0.9, 0.8]), bad[0].model_copy(update={"rows": [], "num_rows": 0})], SPEC)
    assert set(own[0].change) == {"train.optimizer.learning_rate"}


def test_apply_writes_a_valid_spec_with_exactly_the_printed_changes(tmp_path: Path) -> None:
    run = RunFolder(tmp_path / "run")
    run.path.mkdir()
    (run.path / "spec.yaml").write_text(TEXT)
    found = diagnose(epochs([1.0, 0.6, 0.4, 0.2, 0.1, 0.05], [1.0, 0.7, 0.6, 0.7, 0.8, 0.9]), SPEC)
    target = tmp_path / "new.yaml"
    apply_findings(run, found, target)
    written = load_spec(target)
    assert written.train.optimizer.weight_decay == found[0].change["train.optimizer.weight_decay"]
    assert written.train.early_stopping is not None
    assert set(yaml.safe_load(target.read_text())["train"]) == {"epochs", "optimizer", "early_stopping"}
    assert "--set train.early_stopping=" in render(found)
    assert render([]) == "Nothing stands out in this run's curves."
