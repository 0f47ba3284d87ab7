"""The report: one file that needs no network, for a run in any state."""

from __future__ import annotations

import json
import re
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest

from cluster.report import write_report
from cluster.report.facts import gather
from cluster.spec.load import validate_spec
from cluster.spec.resolve import DataFacts, HostFacts, resolve
from cluster.store.run_folder import RECORD, RunFolder, StageRecord
from cluster.telemetry.events import EpochFinished, Record, RunFailed, StageStarted, TrainStep
from tests.unit.progress_tests.story import START_S, finished, searching, training

VOID = {"meta", "br", "link", "img", "hr", "input", "col"}
TRIALS = [
    {
        "trial": number,
        "values": {"train.optimizer.learning_rate": 0.001 * (number + 1), "train.batch_size_global": 32},
        "source": "current" if number == 0 else "random",
        "state": "done",
        "note": "",
        "epochs": 2,
        "value": 0.5 - 0.1 * number,
        "reports": {"1": 0.8, "2": 0.5 - 0.1 * number},
    }
    for number in range(3)
]


class Balanced(HTMLParser):
    """Fails on a tag that is closed out of order; collects what the page would fetch."""

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.fetched: list[str] = []
        self.ids: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        values = dict(attrs)
        for key in ("src", "href", "xlink:href"):
            if values.get(key) and not str(values[key]).startswith("#"):
                self.fetched.append(str(values[key]))
        if values.get("id"):
            self.ids.append(str(values["id"]))
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.handle_starttag(tag, attrs)
        if tag not in VOID:
            self.open.pop()

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag


def run_at(path: Path, events: list[Record]) -> RunFolder:
    run = RunFolder(path / "digits")
    run.path.mkdir()
    for event in events:
        run.sink().emit(event)
    return run


def record(run: RunFolder, stage: str, facts: dict[str, Any], details: dict[str, Any] | None = None) -> None:
    folder = run.stage(stage)
    folder.mkdir(parents=True)
    value = StageRecord(
        stage=stage, inputs_digest="x", facts=facts, details=details or {}, started_unix_s=START_S, duration_s=1.0
    )
    (folder / RECORD).write_text(value.model_dump_json(), encoding="utf-8")


def full_run(path: Path) -> RunFolder:
    run = run_at(path, finished())
    spec = validate_spec(
        {
            "version": 1,
            "data": {"source": {"kind": "sklearn", "dataset": "digits"}},
            "search": {"space": {"train.optimizer.learning_rate": {"kind": "choice", "values": [0.1, 0.2]}}},
        }
    )
    data = DataFacts(task="classification", layout="image", num_rows=100, num_rows_train=60, source_digest="x")
    run.write_resolved(resolve(spec, name="digits", host=HostFacts(cpu_cores=2, memory_bytes=8 << 30), data=data))
    record(run, "search", {"best_trial": 2})
    (run.stage("search") / "trials.json").write_text(json.dumps(TRIALS), encoding="utf-8")
    per_class = [
        {"class": name, "precision": 0.9, "recall": 0.8, "f1": 0.85, "support": 10} for name in ("<cat>", "dog")
    ]
    record(run, "evaluate", {"metrics": {"accuracy": 0.9}, "per_class": per_class, "confusion": [[8, 2], [1, 9]]})
    candidate = {
        "recipe": "int8_static",
        "verdict": "pass",
        "reason": "",
        "accuracy": 0.89,
        "drop": 0.01,
        "low": -0.01,
        "high": 0.03,
        "n": 200,
        "size_bytes": 100_000,
        "latency_ms_p50": 0.2,
    }
    failed = {**candidate, "recipe": "other", "verdict": "fail", "accuracy": None, "drop": None, "low": None}
    record(run, "compress", {"chosen": "int8_static", "candidates": [candidate, failed]})
    record(run, "predict", {"rows": 64}, {"latency_ms_p50": 1.2, "latency_ms_p99": 3.4})
    return run


def parsed(html: str) -> Balanced:
    page = Balanced()
    page.feed(html)
    page.close()
    assert not page.open
    return page


def test_a_finished_run_has_every_section_and_fetches_nothing(tmp_path: Path) -> None:
    html = write_report(full_run(tmp_path)).read_text(encoding="utf-8")
    page = parsed(html)
    assert page.fetched == []
    assert not re.search(r"url\((?!#)|@import|<script", html)
    wanted = {"training", "search", "quality", "compression", "result", "stages", "messages", "environment", "spec"}
    assert wanted <= set(page.ids)


def test_the_diagnosis_stands_with_its_remedies_and_only_where_there_is_one(tmp_path: Path) -> None:
    run = full_run(tmp_path)
    assert "diagnosis" not in parsed(write_report(run).read_text(encoding="utf-8")).ids
    change = {"train.optimizer.weight_decay": 0.05, "train.early_stopping": {"patience": 5}}
    finding = {
        "code": "overfitting",
        "text": "The model over-fits <here>.",
        "evidence": {"best": 0.1},
        "change": change,
    }
    record(run, "train", {}, {"findings": [finding]})
    html = write_report(run).read_text(encoding="utf-8")
    assert "diagnosis" in parsed(html).ids
    assert "over-fits &lt;here&gt;" in html
    assert "--set train.optimizer.weight_decay=0.05" in html


def test_ids_are_unique_in_the_page(tmp_path: Path) -> None:
    """Clip paths of one figure must not cut another."""
    ids = parsed(write_report(full_run(tmp_path)).read_text(encoding="utf-8")).ids
    assert len(ids) == len(set(ids))


def test_text_of_the_data_is_escaped(tmp_path: Path) -> None:
    html = write_report(full_run(tmp_path)).read_text(encoding="utf-8")
    assert "&lt;cat&gt;" in html
    assert "<cat>" not in html


def test_figures_take_the_colors_of_the_page(tmp_path: Path) -> None:
    html = write_report(full_run(tmp_path)).read_text(encoding="utf-8")
    assert "var(--c1)" in html
    assert not re.search(r"#0[1-5]0[1-5]0[1-5]", html)


def test_the_spec_stands_with_the_reason_of_each_decided_value(tmp_path: Path) -> None:
    html = write_report(full_run(tmp_path)).read_text(encoding="utf-8")
    assert re.search(r"family: cnn\s+# rows are images", html)


@pytest.mark.parametrize("events", [[], searching(), training()])
def test_an_unfinished_run_has_a_report(tmp_path: Path, events: list[Record]) -> None:
    html = write_report(run_at(tmp_path, events)).read_text(encoding="utf-8")
    parsed(html)
    assert ">unfinished<" in html


def test_a_failed_run_tells_its_error_and_traceback(tmp_path: Path) -> None:
    error = {"attempted": "Cannot train", "found": "loss is nan", "rule": "", "remedy": "Lower the rate."}
    run = run_at(tmp_path, [*training(), RunFailed(run="digits", error=error, traceback="Traceback: in step()")])
    html = write_report(run).read_text(encoding="utf-8")
    assert all(part in html for part in (">failed<", "loss is nan", "Lower the rate.", "in step()"))


def test_the_last_record_may_be_one_that_is_not_written_yet(tmp_path: Path) -> None:
    *before, last = finished()
    assert ">finished<" in write_report(run_at(tmp_path, before), last).read_text(encoding="utf-8")


def test_trials_of_an_unfinished_search_come_from_events(tmp_path: Path) -> None:
    report = gather(run_at(tmp_path, searching()))
    assert [row.name for row in report.trials] == ["0", "1", "2"]


def test_a_resumed_training_is_one_curve_and_other_inputs_are_left_out(tmp_path: Path) -> None:
    def step(update: int, loss: float) -> TrainStep:
        return TrainStep(
            stage="train",
            epoch=1,
            epochs=2,
            update=update,
            updates=9,
            loss=loss,
            learning_rate=0.1,
            samples_per_s=1,
        )

    events: list[Record] = [
        StageStarted(stage="train", digest="old"),
        step(1, 9.0),
        StageStarted(stage="train", digest="new"),
        step(1, 1.0),
        step(2, 0.9),
        StageStarted(stage="train", digest="new"),
        step(2, 0.8),
        step(3, 0.7),
        EpochFinished(stage="train", epoch=1, epochs=2, update=3, metrics={"validation.loss": 0.5}),
    ]
    report = gather(run_at(tmp_path, events))
    assert [(item.update, item.loss) for item in report.steps] == [(1, 1.0), (2, 0.8), (3, 0.7)]
    assert len(report.epochs) == 1
