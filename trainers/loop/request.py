"""The request of a training run.

Invariant: a request is picklable and complete: the same request gives the same weights, byte for byte, on the same
machine type, whether or not it was interrupted.
"""

from __future__ import annotations

import os
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from cluster.spec.batch_plan import BatchPlan
from cluster.spec.model import ModelSpec
from cluster.spec.train import TrainSpec


@dataclass(frozen=True)
class SizingRequest:
    """`batch_size_per_worker: auto`: a run that starts anew probes its micro-batch first (tuner/)."""

    budget_bytes: int | None = None
    """Memory that one worker may use; None: its share of what is free on a CPU, what is free on a GPU."""
    cache: Path | None = None
    """Folder of what was found for a model, signature, precision and device."""


@dataclass(frozen=True)
class FitRequest:
    """One training run, without any `auto`."""

    train: TrainSpec
    batch: BatchPlan
    model: ModelSpec
    seed: int
    prepared: Path
    """Folder that `open_prepared` reads; every worker must see it."""
    stage: str
    """Named in the records that are emitted."""
    checkpoints: Path | None
    """Folder of this run's checkpoints; None writes none. An interrupted run goes on from what lies there."""
    model_factory: str | None = None
    """`module:function`, called with `**model_arguments`, instead of `build_model` (pruned models, students)."""
    model_arguments: dict[str, Any] = field(default_factory=dict)
    objective: str | None = None
    """`module:function`, called once per worker with `**objective_arguments`; it returns a function
    `(inputs: tuple[Tensor, ...], outputs: (N, C), targets: (N,)) -> (N,) losses` that replaces the loss of the
    spec in training (a distillation loss). The mean over a global batch is taken by the engine."""
    objective_arguments: dict[str, Any] = field(default_factory=dict)
    sizing: SizingRequest | None = None
    """None: the micro-batch is that of `batch`."""
    traces: Path | None = None
    """Folder of what `train.profile_updates` records."""
    find_learning_rate: bool = False
    """A run that starts anew takes its learning rate from a range test (tuner/)."""
    code: str = field(default_factory=os.getcwd)
    """Folder in which modules that the request names are looked for, on workers that see it."""
