"""Everything that changes while a run goes on: all that a checkpoint must hold, and what only this process needs.

Invariant: between two windows, `Job` (fixed by the request) and `State` determine the rest of the run, byte for byte.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cached_property

import torch
from torch import nn

from cluster.bundle.signature import TensorSpec
from cluster.spec.batch_plan import batch_size_of_epoch, updates_of_epochs
from cluster.spec.optimizer import ScheduleSpec
from cluster.telemetry.events import EpochFinished, EventSink
from trainers.data.shards import PreparedData
from trainers.loop.data.augment import Augmenter
from trainers.loop.data.loader import SplitReader
from trainers.loop.data.sampler import Window
from trainers.loop.distributed.gradient_exchange import GradientExchange
from trainers.loop.distributed.world import World
from trainers.loop.parts.batch_norm import BatchNorms
from trainers.loop.parts.callbacks import Loaded
from trainers.loop.parts.ema import Ema
from trainers.loop.parts.losses import Objective
from trainers.loop.parts.plateau import Plateau
from trainers.loop.parts.quick_step import QuickStep
from trainers.loop.parts.rng import QuickSnapshots
from trainers.loop.parts.schedule import peak_learning_rate, settled
from trainers.loop.request import FitRequest


@dataclass
class Cursor:
    """Where the run is."""

    epoch: int = 0
    window: int = 0
    """Next window of the epoch: moves also when an update was skipped."""
    update: int = 0
    """Optimizer steps made: the schedule's index. Stays when an update was skipped."""
    skipped: int = 0
    """Windows left out so far."""
    nonfinite: list[tuple[int, int]] = field(default_factory=list)
    """(epoch, window) of the last windows in a row whose gradients were not finite: what a rollback condemns."""
    loss_sum: float = 0.0
    """Of this epoch so far, over all workers."""
    weight_sum: float = 0.0


@dataclass
class Best:
    """The best epoch so far."""

    epoch: int = -1
    value: float | None = None
    metrics: dict[str, float] = field(default_factory=dict)
    weights: dict[str, torch.Tensor] = field(default_factory=dict)
    epochs_without: int = 0
    """Epochs since it last improved by the early-stopping delta."""


@dataclass
class PendingUpdate:
    """An update that is queued on the device and whose outcome the host has not read yet."""

    window: Window
    weight: float
    learning_rate: float
    numbers: torch.Tensor
    """(5,) float64 on the host: loss sum, stop, gradient norm, 1 where the update was skipped, loss scale. Valid
    after `arrived`."""
    arrived: torch.cuda.Event | None


@dataclass(frozen=True)
class UpdateReport:
    """What an update did."""

    made: bool
    loss_sum: float
    """Over all workers."""
    weight: float
    gradient_norm: float
    learning_rate: float
    stop: bool
    """A worker is to stop after this update."""
    time_over: bool
    """`train.max_time_s` has passed: the epoch ends with this update."""
    window: Window


@dataclass
class State:
    """The changing part of a run."""

    model: nn.Module
    optimizer: torch.optim.Optimizer
    exchange: GradientExchange
    scaler: torch.amp.GradScaler | None
    ema: Ema | None
    plateau: Plateau | None
    norms: BatchNorms
    micro_size: int
    """Rows of a micro-batch: halves when memory does not suffice."""
    micro_reason: str = ""
    """Why it is that, where a probe found it."""
    learning_rate_found: float | None = None
    """In place of `optimizer.learning_rate`, where a range test found it."""
    cursor: Cursor = field(default_factory=Cursor)
    best: Best = field(default_factory=Best)
    history: list[EpochFinished] = field(default_factory=list)
    left_out: set[tuple[int, int]] = field(default_factory=set)
    """(epoch, window) pairs that a rollback has condemned."""
    rollbacks: int = 0
    stopped_early: bool = False
    rows_seen: int = 0
    """Rows of all windows that this process has finished, skipped ones included; for speed, so in no checkpoint."""
    deferred: bool = False
    """The host reads an update's outcome only after the next one's backward is queued, and never waits before."""
    pending: PendingUpdate | None = None
    """With `deferred`: the newest update, until it is finished. A checkpoint is never taken before."""
    compiled: nn.Module | None = None
    """`torch.compile` of the model, sharing its parameters; training forwards go through it."""
    inspecting: bool = False
    """In an update that is inspected: the plain model runs, for hooks would make torch compile anew."""
    unclipped: list[torch.Tensor] | None = None
    """Where an inspection wants them: norms of the parameters' gradients as they came, before any clipping."""
    failure: Exception | None = None
    """What this worker's optimizer step raised, until all workers have met and raised it."""
    evaluation_rows: int | None = None
    """Rows of an evaluation's forward, where memory has not sufficed for more."""
    callbacks: list[Loaded] = field(default_factory=list)
    """Those of the user's that this worker calls."""
    seconds: float = 0.0
    """Spent in training before this process began, where `train.max_time_s` counts them."""
    random: QuickSnapshots = field(default_factory=QuickSnapshots)
    _quick_step: QuickStep | None = None

    @property
    def forward(self) -> nn.Module:
        """What a training forward calls."""
        return self.model if self.compiled is None or self.inspecting else self.compiled

    @contextmanager
    def evaluated(self) -> Iterator[None]:
        """The model holds the weights inside that are evaluated and kept: their average, or what an optimizer with
        `eval` and `train` makes of them. Outside its own, to the byte."""
        if self.ema:
            with self.ema.applied():
                yield
            return
        change, change_back = getattr(self.optimizer, "eval", None), getattr(self.optimizer, "train", None)
        if not callable(change) or not callable(change_back):
            yield
            return
        before = [parameter.detach().clone() for parameter in self.exchange.parameters]
        change()
        try:
            yield
        finally:
            change_back()
            with torch.no_grad():
                torch._foreach_copy_(list(self.exchange.parameters), before)

    @property
    def quick_step(self) -> QuickStep:
        """Of the present optimizer."""
        if self._quick_step is None or self._quick_step.optimizer is not self.optimizer:
            self._quick_step = QuickStep(self.optimizer)
        return self._quick_step

    @cached_property
    def buffers(self) -> list[torch.Tensor]:
        """Of the model: walking through its modules at every update would cost more than copying them."""
        return list(self.model.buffers())

    @cached_property
    def own_buffers(self) -> list[torch.Tensor]:
        """Those that workers do not agree on by themselves."""
        agreed = self.norms.buffers()
        return [buffer for buffer in self.buffers if id(buffer) not in agreed]

    @cached_property
    def held_buffers(self) -> list[torch.Tensor]:
        """Room for a copy of them, taken before each window."""
        return [buffer.clone() for buffer in self.buffers]


@dataclass(frozen=True)
class Job:
    """The fixed part of a run."""

    request: FitRequest
    data: PreparedData
    world: World
    device: torch.device
    train: SplitReader
    validation: SplitReader
    objective: Objective
    augmenter: Augmenter
    sink: EventSink

    @property
    def inputs(self) -> tuple[TensorSpec, ...]:
        return self.data.inputs

    def batch_size(self, epoch: int) -> int:
        """Global batch of an epoch."""
        return batch_size_of_epoch(self.request.train, self.request.batch.batch_size_global, epoch)

    @cached_property
    def windows_of_epochs(self) -> tuple[int, ...]:
        """Updates of each epoch, those that are skipped included."""
        return updates_of_epochs(self.request.train, self.request.batch.batch_size_global, self.train.num_rows)

    def num_windows(self, epoch: int) -> int:
        """Updates of an epoch, those that are skipped included."""
        return self.windows_of_epochs[epoch]

    @property
    def num_epochs(self) -> int:
        """Fewer than `train.epochs` where `train.max_updates` ends the run earlier."""
        return len(self.windows_of_epochs)

    @cached_property
    def updates_total(self) -> int:
        """Windows of the whole run: the schedule's length."""
        return sum(self.windows_of_epochs)

    @cached_property
    def schedule(self) -> ScheduleSpec:
        """With the warm-up in updates."""
        return settled(self.request.train.schedule.model_copy(update={"eta_min": None}), self.windows_of_epochs, 1.0)

    @cached_property
    def peak_learning_rate(self) -> float:
        return peak_learning_rate(self.request.train.optimizer, self.request.batch.batch_size_global)
