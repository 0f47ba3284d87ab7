"""What a trial tells about how it ended."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import torch

from cluster.errors import DivergedError, MemoryShortError, ModelError
from cluster.spec import parse_spec
from cluster.spec.resolve import DataFacts, HostFacts, resolve
from cluster.telemetry.events import EpochFinished
from tests.unit.loop_tests.rig import write_data
from trainers.search.trial import Reporter, TrialSetup, fit_trial, outcome_of


def epoch(number: int, **metrics: float) -> EpochFinished:
    return EpochFinished(stage="search", epoch=number, epochs=9, update=number, metrics=metrics)


@pytest.mark.parametrize(
    ("error", "state"),
    [
        (RuntimeError("CUDA out of memory. Tried to allocate 20.00 MiB"), "oom"),
        (RuntimeError("[enforce fail at alloc_cpu.cpp:119] DefaultCPUAllocator: can't allocate memory: you"), "oom"),
        (RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling cublasCreate"), "oom"),
        (torch.OutOfMemoryError("CUDA out of memory."), "oom"),
        (MemoryError(), "oom"),
        (MemoryShortError("Cannot make update 3", found="memory does not suffice for one sample"), "oom"),
        (DivergedError("Cannot go on", found="loss is nan"), "diverged"),
        (RuntimeError("mat1 and mat2 shapes cannot be multiplied"), "failed"),
        (ModelError("Cannot build", found="no such family"), "failed"),
        (TypeError("unexpected"), "failed"),
    ],
)
def test_an_error_is_told_apart_by_what_a_searcher_can_learn_from_it(error: Exception, state: str) -> None:
    assert outcome_of(error)[0] == state


def test_reports_are_finite_and_nothing_follows_an_outcome() -> None:
    told: list[dict[str, Any]] = []
    reporter = Reporter(told.append, "validation.loss")
    assert reporter.on_epoch(epoch(1, **{"validation.loss": 0.5, "train.loss": math.inf})) is False
    assert reporter.on_epoch(epoch(2, **{"validation.loss": math.nan})) is True
    reporter.end("failed", "the loop raised after it was told to stop")
    assert [item["outcome"] for item in told] == ["", "diverged"]
    assert [item["value"] for item in told] == [0.5, 0.5]
    assert told[0]["metrics"] == {"validation.loss": 0.5}


def test_an_outcome_before_the_first_epoch_has_a_number_too() -> None:
    told: list[dict[str, Any]] = []
    Reporter(told.append, "validation.loss").end("oom", "x")
    assert told == [{"epoch": 0, "value": 0.0, "outcome": "oom", "note": "x"}]


@pytest.mark.parametrize("metric", ["validation.loss", "validation.accuracy", "validation.macro_f1"])
def test_a_trial_makes_the_metric_that_the_search_compares_by(metric: str, tmp_path: Path) -> None:
    text = "version: 1\ndata: {source: {kind: sklearn, dataset: digits}}\nmodel: {family: mlp, hidden: [4]}\n"
    text += "train: {workers: 1, batch_size_global: 8}\n"
    facts = DataFacts(task="classification", layout="array", num_rows=24, num_rows_train=24, source_digest="0")
    host = HostFacts(cpu_cores=1, memory_bytes=1 << 30)
    setup = TrialSetup(
        resolved=resolve(parse_spec(text), name="r", host=host, data=facts),
        prepared=write_data(tmp_path, 24, dtype="FP32"),
        metric=metric,
        epochs=1,
    )
    told: list[dict[str, Any]] = []
    fit_trial({"train.optimizer.learning_rate": 0.01}, 3, setup, Reporter(told.append, metric).on_epoch)
    assert told[0]["outcome"] == ""
    assert metric in told[0]["metrics"]
