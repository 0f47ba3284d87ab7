"""Points for trackers: every curve once, by update, whatever happened to the run."""

from __future__ import annotations

import importlib.util
import math
from pathlib import Path

import pytest

from cluster.cli.app import call
from cluster.errors import MissingDependencyError
from cluster.pipeline.trackers import send_to_trackers
from cluster.runtime.extras import check_extras, require
from cluster.runtime.preflight import check_this_host
from cluster.spec import load_spec, parse_spec
from cluster.store.run_folder import StageRecord
from cluster.telemetry.events import Diagnostics, EpochFinished, Message, Record, StageStarted, TrainStep, read_events
from tests.unit.report_tests.test_report import full_run
from trainers.trackers.points import Story, flat_spec, tell
from trainers.trackers.wandb import history_rows

TEXT = "version: 1\ndata: {source: {kind: sklearn, dataset: digits}}\n"


def step(update: int, loss: float, time_s: float = 1.0, **extra: float) -> TrainStep:
    return TrainStep(
        time_s=time_s,
        stage="train",
        epoch=1,
        epochs=1,
        update=update,
        updates=9,
        loss=loss,
        learning_rate=0.1,
        samples_per_s=5.0,
        extra=extra,
    )


def started(digest: str, stage: str = "train") -> StageStarted:
    return StageStarted(stage=stage, digest=digest)


def curve(story: Story, name: str) -> list[tuple[int, float]]:
    return [(point.step, point.value) for point in story.points if point.name == name]


def test_names_have_the_stage_and_steps_are_updates() -> None:
    records: list[Record] = [
        started("a"),
        step(20, 0.5, gradient_norm=2.0),
        Diagnostics(stage="train", update=20, values={"layers.0.weight": {"gradient_norm": 0.25}}),
        EpochFinished(stage="train", epoch=1, epochs=1, update=25, metrics={"validation.loss": 0.75}),
    ]
    facts = {"metrics": {"accuracy": 0.9}, "per_class": []}
    evaluated = StageRecord(
        stage="evaluate", inputs_digest="x", facts=facts, details={}, started_unix_s=9.0, duration_s=1.0
    )
    story = tell(records, {"evaluate": evaluated}, "k")
    assert curve(story, "train/loss") == [(20, 0.5)]
    assert curve(story, "train/gradient_norm") == [(20, 2.0)]
    assert curve(story, "train/layer/layers.0.weight/gradient_norm") == [(20, 0.25)]
    assert curve(story, "train/validation.loss") == [(25, 0.75)]
    assert curve(story, "evaluate/accuracy") == [(25, 0.9)]


def test_a_resumed_training_tells_each_step_once_and_keeps_its_key() -> None:
    first: list[Record] = [started("a"), step(1, 0.5, 1.0), step(2, 0.4, 2.0)]
    again = [*first, started("a"), step(2, 0.4, 7.0), step(3, 0.3, 8.0)]
    story = tell(again, {}, "k")
    assert curve(story, "train/loss") == [(1, 0.5), (2, 0.4), (3, 0.3)]
    assert story.key == tell(first, {}, "k").key
    assert story.points[: len(tell(first, {}, "k").points)] == tell(first, {}, "k").points, "what was sent stays"
    assert story.key != tell(first, {}, "other folder").key


def test_a_training_of_other_inputs_is_told_alone_under_a_key_of_its_own() -> None:
    before: list[Record] = [started("a"), step(1, 0.5)]
    after = [*before, started("b"), step(1, 0.9)]
    assert curve(tell(after, {}, "k"), "train/loss") == [(1, 0.9)]
    assert tell(after, {}, "k").key != tell(before, {}, "k").key


def test_values_that_are_not_finite_are_left_out_and_counted() -> None:
    story = tell([started("a"), step(1, math.nan), step(2, math.inf), step(3, 0.1)], {}, "k")
    assert curve(story, "train/loss") == [(3, 0.1)]
    assert story.left_out == 2


def test_rows_hold_what_belongs_to_one_update() -> None:
    rows = history_rows(tell([started("a"), step(1, 0.5), step(2, 0.4)], {}, "k"))
    assert [row["update"] for row in rows] == [1, 2]
    assert rows[1]["train/loss"] == 0.4
    assert rows[1]["train/learning_rate"] == 0.1


def test_a_spec_is_flat_text() -> None:
    flat = flat_spec(parse_spec(TEXT + "train: {optimizer: {betas: [0.9, 0.95]}}\n").model_dump(mode="json"))
    assert flat["data.source.dataset"] == "digits"
    assert flat["train.optimizer.betas"] == "[0.9, 0.95]"
    assert flat["search"] == "null"


def test_a_missing_package_is_told_with_the_extra_that_brings_it() -> None:
    with pytest.raises(MissingDependencyError, match=r"manta-ml\[trackers\]") as caught:
        require("no_such_package", extra="trackers", wanted_by="tracking.mlflow")
    assert caught.value.exit_code == 3
    check_extras(parse_spec(TEXT))


@pytest.mark.parametrize(
    ("section", "module", "extra"),
    [
        ("compress: {recipes: [prune], prune: {tracer: torch_pruning}}", "torch_pruning", "prune"),
        ("export: {optimize: {onnxslim: true}}", "onnxslim", "optimize"),
    ],
)
def test_what_a_late_stage_needs_is_told_at_the_start(
    section: str, module: str, extra: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    find = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == module else find(name))
    with pytest.raises(MissingDependencyError, match=rf"manta-ml\[{extra}\]"):
        check_extras(parse_spec(f"{TEXT}{section}\n"))


def test_a_folder_with_a_packages_name_is_not_the_package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "no_such_package").mkdir()  # as wandb leaves ./wandb behind
    monkeypatch.syspath_prepend(str(tmp_path))
    with pytest.raises(MissingDependencyError):
        require("no_such_package", extra="trackers", wanted_by="tracking.wandb")


def test_a_tracker_that_fails_is_one_warning(tmp_path: Path) -> None:
    """A folder without resolved.yaml makes the sending process fail for real."""
    run = full_run(tmp_path)
    run.resolved_path.unlink(missing_ok=True)
    spec = parse_spec(TEXT + "tracking: {mlflow: {uri: 'http://127.0.0.1:9'}}\n")
    send_to_trackers(run, spec.tracking, "finished")
    warnings = [event for event in read_events(run.events) if isinstance(event, Message) and "trackers" in event.text]
    assert len(warnings) == 1
    assert warnings[0].level == "warning"
    assert "resolved.yaml" in warnings[0].text
    before = len(read_events(run.events))
    send_to_trackers(run, parse_spec(TEXT).tracking, "finished")
    assert len(read_events(run.events)) == before, "no tracker, no process"


@pytest.mark.parametrize("section", ["mlflow: {uri: 'sqlite:///x.db'}", "wandb: {mode: offline}"])
def test_check_and_the_start_of_a_run_name_the_extra(
    section: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """In our own environment the packages are missing; where somebody has them there is nothing to be seen."""
    if importlib.util.find_spec(section.partition(":")[0]):
        pytest.skip("the extra is installed")
    spec = tmp_path / "run.yaml"
    spec.write_text(TEXT + f"tracking: {{{section}}}\n")
    assert call(["check", str(spec)]) == 3
    assert "manta-ml[trackers]" in capsys.readouterr().err
    for private in (True, False):
        with pytest.raises(MissingDependencyError, match="trackers"):
            check_this_host(load_spec(spec), private=private, serves=False)
