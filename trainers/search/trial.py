"""One trial, in a process of its own: train with one worker, report each epoch and how it ended.

Invariant: a report is always finite. What cannot be a number (divergence, out of memory, an error) is reported once
as an outcome, and the function returns normally: Tune never retries it with the same values, and the study gets the
cause (with Ray 2.60 a searcher gets none for a trial that raised). What is left to Tune is the death of the
process, which one retry is for.

Covered: outcomes, trials on CPU and GPU. Not covered: more than one worker a trial (results do not depend on it,
but for dropout's draws, and for batch norm where `train.batch_norm_rows` is null).
"""

from __future__ import annotations

import logging
import math
import os
import time
import traceback
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from cluster.errors import DivergedError, MantaError, MemoryShortError
from cluster.spec.resolve import ResolvedRun
from cluster.spec.train import CONFUSION_METRICS
from cluster.telemetry.events import EpochFinished, NullSink

DEVICE_FREE_SHARE = 0.9  # of a GPU's memory: less means that the trial before is still going away
DEVICE_WAIT_S = 20.0  # a killed process gives its memory back within a few seconds
DEVICE_POLL_S = 0.25

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class TrialSetup:
    """What all trials of a search share. Picklable."""

    resolved: ResolvedRun
    prepared: Path
    metric: str
    epochs: int
    code: str = field(default_factory=os.getcwd)
    """Folder in which modules that the spec names are looked for."""


class Reporter:
    """A trial's reports to Tune: a finite value an epoch, and at most one outcome."""

    def __init__(self, report: Callable[[dict[str, Any]], None], metric: str) -> None:
        self._report = report
        self._metric = metric
        self._epoch = 0
        self._value = 0.0
        self._ended = False

    def on_epoch(self, event: EpochFinished) -> bool:
        """Report an epoch; True ends the training."""
        value = event.metrics.get(self._metric)
        if value is None:
            names = ", ".join(sorted(event.metrics))
            self.end("failed", f"no metric {self._metric!r} among {names}")
        elif not math.isfinite(value):
            self.end("diverged", f"{self._metric} is {value} after epoch {event.epoch}")
        else:
            self._epoch, self._value = event.epoch, value
            metrics = {key: item for key, item in event.metrics.items() if math.isfinite(item)}
            self._report({"epoch": event.epoch, "value": value, "metrics": metrics, "outcome": ""})
        return self._ended

    def end(self, outcome: str, note: str) -> None:
        """The last report; Tune needs a number in it, the searcher and the scheduler read the outcome first."""
        if self._ended:
            return  # the loop may raise after it was to stop
        self._ended = True
        self._report({"epoch": self._epoch, "value": self._value, "outcome": outcome, "note": note})


def run_trial(config: dict[str, Any], setup: TrialSetup) -> None:
    """Tune's function. `config["values"]` are dotted paths, `config["seed"]` may replace the run's seed."""
    from ray import tune

    from trainers.loop.parts.deterministic import prepare_process

    reporter = Reporter(tune.report, setup.metric)
    try:
        prepare_process(setup.resolved.spec.train)
        wait_for_device()
        fit_trial(config["values"], config.get("seed"), setup, reporter.on_epoch)
    except Exception as error:  # noqa: BLE001 - the worker's seam: an error is an outcome of the trial
        outcome, note = outcome_of(error)
        if outcome == "failed" and not isinstance(error, MantaError):
            log.error("trial %s failed:\n%s", config["values"], traceback.format_exc())
        reporter.end(outcome, note)


def outcome_of(error: Exception) -> tuple[str, str]:
    """(state, note) of a trial that raised."""
    # imports torch, which the trial's process has by then
    from trainers.loop.distributed.memory_short import is_out_of_memory

    if isinstance(error, DivergedError):
        return "diverged", error.found
    if isinstance(error, MemoryShortError):
        return "oom", error.found
    if isinstance(error, MantaError):
        return "failed", error.message
    if is_out_of_memory(error):
        return "oom", first_line(error)
    return "failed", f"{type(error).__name__}: {first_line(error)}"


def fit_trial(
    values: dict[str, Any], seed: int | None, setup: TrialSetup, on_epoch: Callable[[EpochFinished], bool]
) -> None:
    """Train once with the spec's values replaced."""
    from trainers.loop import FitRequest, fit

    fidelity: dict[str, Any] = {
        "train.epochs": setup.epochs,
        "train.early_stopping": None,
    }  # the scheduler stops a trial early
    if setup.metric.rpartition(".")[2] in CONFUSION_METRICS:  # made only where a training is judged by them
        fidelity |= {"train.best.metric": setup.metric, "train.best.mode": "max"}
    resolved = setup.resolved.with_values({**fidelity, **values})
    request = FitRequest(
        train=resolved.spec.train,
        batch=resolved.batch.for_workers(1),
        model=resolved.spec.model,
        seed=resolved.spec.seed if seed is None else seed,
        prepared=setup.prepared,
        stage="search",
        checkpoints=None,
        code=setup.code,
    )
    fit(request, sink=NullSink(), on_epoch=on_epoch)  # the driver emits the records of all trials


def wait_for_device() -> None:
    """Wait, for a while, until this trial's GPU has its memory back from the trial before (ray#23971).

    Not covered: memory that another user of the GPU holds; after the wait the trial starts all the same.
    """
    import torch

    if not torch.cuda.is_available():
        return
    deadline = time.monotonic() + DEVICE_WAIT_S
    while time.monotonic() < deadline:
        free, total = torch.cuda.mem_get_info()
        if free >= DEVICE_FREE_SHARE * total:
            return
        time.sleep(DEVICE_POLL_S)


def first_line(error: BaseException) -> str:
    return str(error).strip().split("\n")[0][:300] or type(error).__name__
