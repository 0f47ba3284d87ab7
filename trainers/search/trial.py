"""One trial, in a process of its own: train with one worker, report each epoch, say why it ended.

Invariant: a report is always finite. What cannot be a number (divergence, out of memory, an error of the request)
is reported once as an outcome, and the function returns normally: Tune never retries it with the same values, and
the study is told what happened (Ray 2.60 tells a searcher nothing about a trial that raised).

Covered: outcomes, trials on CPU and GPU. Not covered: more than one worker a trial (results do not depend on it).
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cluster.errors import DivergedError, MantaError
from cluster.spec.resolve import BatchPlan, ResolvedRun
from cluster.telemetry.events import EpochFinished, Record

OUT_OF_MEMORY_TEXTS = (  # of torch, its CPU allocator, cuBLAS and NCCL
    "out of memory",
    "can't allocate memory",
    "CUBLAS_STATUS_ALLOC_FAILED",
    "Failed to CUDA malloc",
)


@dataclass(frozen=True)
class TrialSetup:
    """What all trials of a search share. Picklable."""

    resolved: ResolvedRun
    prepared: Path
    metric: str
    epochs: int


class NullSink:
    """A trial's own records go nowhere: the driver tells the story of all trials."""

    def emit(self, event: Record) -> None:
        """Drop it."""


def run_trial(config: dict[str, Any], setup: TrialSetup) -> None:
    """Tune's function. `config["values"]` are dotted paths; runs in the trial actor."""
    from ray import tune

    seen: dict[str, Any] = {"epoch": 0, "value": None}

    def on_epoch(event: EpochFinished) -> bool:
        value = event.metrics.get(setup.metric)
        if value is None:
            names = ", ".join(sorted(event.metrics))
            report_outcome(tune, seen, "failed", f"no metric {setup.metric!r} among {names}")
            return True
        if not math.isfinite(value):
            report_outcome(tune, seen, "diverged", f"{setup.metric} is {value} after epoch {event.epoch}")
            return True
        seen.update(epoch=event.epoch, value=value)
        tune.report({"epoch": event.epoch, "value": value, "metrics": dict(event.metrics), "outcome": ""})
        return False

    try:
        _fit(config["values"], setup, on_epoch)
    except DivergedError as error:
        report_outcome(tune, seen, "diverged", error.found)
    except MantaError as error:
        report_outcome(tune, seen, "failed", error.message)
    except (RuntimeError, MemoryError) as error:
        if not is_out_of_memory(error):
            raise
        report_outcome(tune, seen, "oom", first_line(error))


def report_outcome(tune: Any, seen: dict[str, Any], outcome: str, note: str) -> None:
    """One last report that carries why a trial ended; its value is the last finite one, or 0 where there is none.

    Tune's strict check wants a number under the metric's name; the searcher and the scheduler look at `outcome` first.
    """
    if seen.get("ended"):
        return  # the loop may raise after it was told to stop
    seen["ended"] = True
    value = seen["value"]
    tune.report({"epoch": seen["epoch"], "value": 0.0 if value is None else value, "outcome": outcome, "note": note})


def trial_batch(plan: BatchPlan) -> BatchPlan:
    """The same updates from one worker: micro-batches keep their size, accumulation makes up for the others."""
    steps = math.ceil(plan.batch_size_global / plan.batch_size_per_worker)
    return plan.model_copy(update={"workers": 1, "accumulation_steps": steps})


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an error means that device or host memory was too small."""
    return isinstance(error, MemoryError) or any(text in str(error) for text in OUT_OF_MEMORY_TEXTS)


def first_line(error: BaseException) -> str:
    return str(error).strip().split("\n")[0][:300] or type(error).__name__


def _fit(values: dict[str, Any], setup: TrialSetup, on_epoch: Any) -> None:
    from trainers.loop import FitRequest, fit

    fidelity = {"train.epochs": setup.epochs, "train.early_stopping": None}  # ASHA is what stops a trial early
    resolved = setup.resolved.with_values({**fidelity, **values})
    request = FitRequest(
        train=resolved.spec.train,
        batch=trial_batch(resolved.batch),
        model=resolved.spec.model,
        seed=resolved.spec.seed,
        prepared=setup.prepared,
        stage="search",
        checkpoints=None,
    )
    fit(request, sink=NullSink(), on_epoch=on_epoch)
