"""The driver runs what must run, reuses what is unchanged, and resumes after any end.

Stages here are small functions of this module, in a table of their own; everything else is real.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path

import pytest

from cluster.errors import DataError, PortInUseError
from cluster.pipeline import driver as driver_module
from cluster.pipeline.driver import DriveOptions, run_driver
from cluster.pipeline.stage import StageContext, StageResult
from cluster.pipeline.stages import Stage
from cluster.spec.resolve import DataFacts, resolve
from cluster.store.fence import Fence
from cluster.store.remote import fetch_bundle
from cluster.store.run_folder import RunFolder
from cluster.store.stage_facts import StageFacts
from cluster.telemetry.events import Message, RunFailed, RunFinished, StageFinished, TrainStep, read_events
from tests.bundles import make_bundle

SPEC = "version: 1\ndata:\n  source: {kind: sklearn, dataset: digits}\nserve: null\nseed: 1\n"
CALLS: list[str] = []
EARLY: list[str] = []
RAY: list[str] = []
"""What has started Ray, or waited for it: `start` of the driver, and the stages."""
FAIL: dict[str, BaseException] = {}
BREAK: list[Callable[[RunFolder], object]] = []

HERE = __name__
ANY = partial(Stage, entrypoint=f"{HERE}:stage_any", facts="cluster.store.stage_facts:StageFacts")
STAGES = (
    ANY(name="check", entrypoint=f"{HERE}:stage_check", sections=("data",), always=True),
    ANY(name="prepare", sections=("data", "seed"), needs=("check",)),
    ANY(name="search", sections=("search",), needs=("prepare",), skip_without="search", early=f"{HERE}:begin"),
    ANY(name="train", sections=("train",), needs=("prepare",), early=f"{HERE}:begin"),
    ANY(name="evaluate", sections=("model",), needs=("train",)),
)
TRAINS_ON_RAY = tuple(
    replace(stage, needs_ray=lambda spec, host: True) if stage.name == "train" else stage for stage in STAGES
)


def stage_check(context: StageContext) -> StageResult:
    facts = DataFacts(task="classification", layout="table", num_rows=100, num_rows_train=80, source_digest="s")
    resolved = resolve(context.spec, name=context.run.name, host=context.host, data=facts)
    return _result(context, resolved=resolved)


def stage_any(context: StageContext) -> StageResult:
    if context.early is not None:
        EARLY.append(f"{context.stage} has it")
        context.early.close()
    return _result(context)


def _result(context: StageContext, **more: object) -> StageResult:
    CALLS.append(context.stage)
    (context.folder / "out.txt").write_text(f"{context.stage} {context.digest}")
    if error := FAIL.get(context.stage):
        raise error
    if context.stage == "evaluate":
        step = {"epoch": 1, "epochs": 1, "update": 1, "updates": 1, "loss": 1.0, "learning_rate": 0.1}
        context.events.emit(TrainStep(stage="train", samples_per_s=1.0, **step))  # type: ignore[arg-type]
        for damage in BREAK:
            damage(context.run)
    return StageResult(
        facts=StageFacts.model_validate({"made": context.stage}), headline=f"did {context.stage}", **more
    )  # type: ignore[arg-type]


class Begun:
    """What an early entry point has started."""

    def __init__(self, stage: str) -> None:
        self.stage = stage
        EARLY.append(f"{stage} begun")

    def close(self) -> None:
        EARLY.append(f"{self.stage} ended")


def begin(context: StageContext) -> Begun:
    assert context.resolved is not None
    if FAIL.get("early"):
        raise FAIL["early"]
    return Begun(context.stage)


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> RunFolder:
    CALLS.clear()
    FAIL.clear()
    BREAK.clear()
    EARLY.clear()
    monkeypatch.setattr(driver_module, "stages_until", lambda last: STAGES)
    RAY.clear()
    monkeypatch.setattr(driver_module.RayThread, "start", lambda self: RAY.append("start"))
    monkeypatch.setattr(driver_module.RayThread, "ready", lambda self: RAY.append("ready") is None)
    (tmp_path / "r").mkdir()
    (tmp_path / "r" / "spec.yaml").write_text(SPEC)
    return RunFolder(tmp_path / "r")


def drive(run: RunFolder) -> int:
    CALLS.clear()
    return run_driver(run, DriveOptions(), Fence.draw(run), wait=lambda: None)


def statuses(run: RunFolder) -> dict[str, str]:
    events = read_events(run.events)
    started = max(index for index, event in enumerate(events) if event.kind == "run_started")
    return {event.stage: event.status for event in events[started:] if isinstance(event, StageFinished)}


def test_a_second_run_reuses_every_unchanged_stage(run: RunFolder) -> None:
    assert drive(run) == 0
    assert CALLS == ["check", "prepare", "train", "evaluate"]
    assert drive(run) == 0
    assert CALLS == ["check"]
    assert statuses(run) == {
        "check": "done",
        "prepare": "reused",
        "search": "skipped",
        "train": "reused",
        "evaluate": "reused",
    }


def test_a_changed_section_reruns_its_stage_and_only_what_depends_on_its_output(run: RunFolder) -> None:
    drive(run)
    (run.path / "spec.yaml").write_text(SPEC + "train: {epochs: 3}\n")
    drive(run)
    assert CALLS == ["check", "train", "evaluate"]


def test_a_damaged_output_is_made_again(run: RunFolder) -> None:
    drive(run)
    (run.stage("prepare") / "out.txt").write_text("flipped")
    drive(run)
    assert CALLS == ["check", "prepare"], "prepare gave the same output again, so train is still good"


def test_a_users_mistake_ends_with_its_exit_code_and_keeps_finished_stages(run: RunFolder) -> None:
    FAIL["train"] = DataError("Cannot train", found="one class")
    assert drive(run) == 2
    assert run.record("prepare") is not None
    assert run.record("train") is None
    failed = [event for event in read_events(run.events) if isinstance(event, RunFailed)]
    assert failed[0].error["code"] == "DATA"
    FAIL.clear()
    assert drive(run) == 0
    assert CALLS == ["check", "train", "evaluate"]


def test_an_unknown_error_is_a_stage_failure_with_its_traceback_kept(run: RunFolder) -> None:
    FAIL["train"] = ZeroDivisionError("user bug")
    assert drive(run) == 1
    (failed,) = [event for event in read_events(run.events) if isinstance(event, RunFailed)]
    assert failed.error["code"] == "STAGE"
    assert "ZeroDivisionError: user bug" in failed.traceback


def test_an_interrupt_is_resumable(run: RunFolder) -> None:
    FAIL["train"] = KeyboardInterrupt()
    assert drive(run) == 1
    assert run.read_state()["state"] == "interrupted"
    FAIL.clear()
    assert drive(run) == 0
    assert CALLS == ["check", "train", "evaluate"]
    assert any(isinstance(event, RunFinished) for event in read_events(run.events))


def test_a_partial_folder_of_other_inputs_is_not_handed_on(run: RunFolder) -> None:
    partial = run.path / "stages" / "train.partial"
    partial.mkdir(parents=True)
    (partial / "inputs.digest").write_text("other")
    (partial / "old.txt").write_text("old")
    assert drive(run) == 0
    assert not (run.stage("train") / "old.txt").exists()


def test_what_a_later_stage_needs_begins_after_check_and_ends_with_the_run(run: RunFolder) -> None:
    """A stage that is skipped or finished begins nothing; one that fails to begin early runs all the same."""
    FAIL["prepare"] = DataError("Cannot read x", found="it is empty")
    assert drive(run) == 2
    assert EARLY == ["train begun", "train ended"], "no stage took it"
    FAIL.clear()
    EARLY.clear()
    assert drive(run) == 0
    assert EARLY == ["train begun", "train has it", "train ended"]
    EARLY.clear()
    assert drive(run) == 0
    assert EARLY == [], "train is finished"


def test_an_early_start_that_fails_is_left_to_the_stage(run: RunFolder) -> None:
    FAIL["early"] = RuntimeError("no room")
    assert drive(run) == 0
    assert "train" in CALLS


def test_no_ray_starts_where_no_stage_that_runs_needs_it(run: RunFolder, monkeypatch: pytest.MonkeyPatch) -> None:
    assert drive(run) == 0
    assert RAY == []
    monkeypatch.setattr(driver_module, "stages_until", lambda last: TRAINS_ON_RAY)
    assert drive(run) == 0
    assert RAY == [], "train is finished"
    (run.path / "spec.yaml").write_text(SPEC + "train: {epochs: 3}\n")
    shutil.rmtree(run.stage("train"))
    assert drive(run) == 0
    assert RAY == ["start", "start", "ready"], "at once, again when every auto is decided, and before train"


def test_a_finished_stage_that_runs_again_finds_ray(run: RunFolder, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(driver_module, "stages_until", lambda last: TRAINS_ON_RAY)
    drive(run)
    (run.path / "spec.yaml").write_text(SPEC + "train: {epochs: 3}\n")
    RAY.clear()
    assert drive(run) == 0
    assert RAY == ["ready"], "nobody knew before train"


@pytest.mark.parametrize(
    ("damage", "views"),
    [
        (lambda run: run.report.mkdir(), ["report (report.html)"]),
        (lambda run: run.tensorboard.write_text("a file"), ["TensorBoard files (tensorboard/)"]),
        (
            lambda run: run.resolved_path.write_text("spec: ["),
            ["report (report.html)", "TensorBoard files (tensorboard/)", "trackers' curves"],
        ),
    ],
    ids=["report", "tensorboard", "all"],
)
@pytest.mark.parametrize("ending", ["done", "failed"])
def test_a_view_that_cannot_be_made_is_a_warning_and_the_run_ends(
    run: RunFolder, damage: Callable[[RunFolder], object], views: list[str], ending: str
) -> None:
    BREAK.append(damage)
    if ending == "failed":
        BREAK.append(_raise)
    assert drive(run) == (0 if ending == "done" else 1)
    events = read_events(run.events)
    warnings = [event.text for event in events if isinstance(event, Message) and event.level == "warning"]
    assert [text.split(" could not be made: ")[0] for text in warnings] == [f"The {view}" for view in views]
    assert all("Error: " in text for text in warnings), "each names its cause"
    assert run.read_state()["state"] == ending
    last = RunFinished if ending == "done" else RunFailed
    assert sum(isinstance(event, last) for event in events) == 1


def _raise(run: RunFolder) -> None:
    raise ZeroDivisionError("user bug")


def test_an_interrupt_while_views_are_made_ends_a_finished_run_as_finished(
    run: RunFolder, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("cluster.pipeline.views.write_report", interrupt)
    assert drive(run) == 0
    assert run.read_state()["state"] == "done"
    assert isinstance(read_events(run.events)[-1], RunFinished)


def test_an_unknown_error_outside_of_stages_ends_the_run_too(run: RunFolder, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object) -> None:
        raise OSError("no /proc")

    monkeypatch.setattr(driver_module, "_look_ahead", fail)
    assert drive(run) == 1
    assert run.read_state()["state"] == "failed"
    (failed,) = [event for event in read_events(run.events) if isinstance(event, RunFailed)]
    assert failed.error["found"] == "OSError: no /proc"


def test_a_driver_that_another_one_has_replaced_writes_nothing_more(run: RunFolder) -> None:
    was: list[bytes] = []
    BREAK.append(lambda run: Fence.draw(run) and was.extend([run.state.read_bytes(), run.events.read_bytes()]))
    assert drive(run) == 1
    assert [run.state.read_bytes(), run.events.read_bytes()] == was
    assert run.record("train") is not None
    assert run.record("evaluate") is None


@pytest.fixture
def bundling(run: RunFolder, monkeypatch: pytest.MonkeyPatch) -> RunFolder:
    """A run whose stages go on to make a bundle and to deploy it."""
    makes = replace(STAGES[-1], name="export", outputs=("bundle",))
    deploys = replace(STAGES[-1], name="deploy", always=True)
    monkeypatch.setattr(driver_module, "stages_until", lambda last: (*STAGES, makes, deploys))
    make_bundle(run.bundle)
    return run


def drive_to(run: RunFolder, store: Path) -> int:
    CALLS.clear()
    return run_driver(run, DriveOptions(store=str(store)), Fence.draw(run), wait=lambda: None)


def test_a_finished_bundle_is_published_though_the_endpoint_fails(bundling: RunFolder, tmp_path: Path) -> None:
    FAIL["deploy"] = PortInUseError("Cannot serve", found="the port is held")
    assert drive_to(bundling, tmp_path / "store") == 3
    fetch_bundle(str(tmp_path / "store"), bundling.name, tmp_path / "got")


def test_an_endpoint_is_tried_though_the_store_fails(bundling: RunFolder, tmp_path: Path) -> None:
    place = tmp_path / "store" / bundling.name

    def break_store(run: RunFolder) -> None:
        place.rmdir()
        place.write_text("a file where the store was")

    BREAK.append(break_store)
    assert drive_to(bundling, tmp_path / "store") == 3
    assert CALLS[-1] == "deploy"
    (failed,) = [event for event in read_events(bundling.events) if isinstance(event, RunFailed)]
    assert "Cannot publish" in failed.error["message"]


def test_a_store_that_cannot_be_is_refused_before_the_work(run: RunFolder) -> None:
    CALLS.clear()
    assert run_driver(run, DriveOptions(store="nosuch://x"), Fence.draw(run), wait=lambda: None) == 2
    assert CALLS == []
