"""`train`: how the network is optimized. The global batch is a fact; workers and accumulation follow from it."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Field, model_validator

from cluster.spec.base import Auto, AutoPositiveInt, NamedObject, PositiveFloat, PositiveInt, Share, StrictSpec
from cluster.spec.optimizer import OptimizerSpec, ScheduleSpec

CONFUSION_METRICS = ("macro_f1", "balanced_accuracy")
"""Made from the confusion matrix, where `best.metric` names one of them."""
EPOCH_METRICS = (
    "validation.loss", "validation.accuracy", *(f"validation.{name}" for name in CONFUSION_METRICS),
    "validation.rmse", "train.loss",
)  # fmt: skip
"""What an epoch may be judged by: accuracy and what follows it for classes, rmse for a quantity."""
METRICS_OF_ONE_TASK = {
    **{f"validation.{name}": "classification" for name in ("accuracy", *CONFUSION_METRICS)},
    "validation.rmse": "regression",
}
"""Those that exist for one task only."""
EPOCHS_MAX = 1_000_000  # each has its number of updates in a list; a larger figure is a slip of the pen


def mode_of(metric: str) -> Literal["min", "max"]:
    """Whether less or more of a metric is better."""
    return "min" if metric.endswith(("loss", "error", "mae", "mse", "rmse")) else "max"


def metric_task_rule(metric: str, task: str) -> str:
    """Why a metric cannot judge a run of a task; empty where it can."""
    needed = METRICS_OF_ONE_TASK.get(metric, task)
    if needed == task:
        return ""
    those = ", ".join(name for name in EPOCH_METRICS if METRICS_OF_ONE_TASK.get(name, task) == task)
    return f"the task is {task}, whose epochs have {those}"


class GrowthSpec(StrictSpec):
    """The global batch grows over the epochs by more accumulation, so that memory stays flat."""

    factor: Annotated[float, Field(ge=1)] = 4.0
    """Global batch of the last epoch, as a multiple of `batch_size_global`."""
    milestones: tuple[PositiveInt, ...] = ()
    """Epochs (from 0) at which it grows by equal factors; empty: linearly from the first epoch to the last."""


class LossSpec(StrictSpec):
    """The training loss. Validation is always measured with the plain one."""

    label_smoothing: Share = 0.0
    focal_gamma: Annotated[float, Field(ge=0)] = 0.0
    """0 is cross-entropy; 2 is the value of the focal loss paper."""
    class_weights: Literal["balanced"] | Annotated[tuple[PositiveFloat, ...], Field(min_length=1)] | None = None
    """`balanced`: inversely to the class counts of the training split, mean 1 over its rows."""


class AugmentSpec(StrictSpec):
    """Random changes of training images, as a pure function of seed, epoch and position."""

    shift_pixels: Annotated[int, Field(ge=0)] = 0
    """Each image moves by up to this many pixels in each direction; zeros come in."""
    mixup_alpha: Annotated[float, Field(ge=0)] = 0.0
    """Beta parameter of MixUp; 0 is off."""
    cutmix_alpha: Annotated[float, Field(ge=0)] = 0.0
    """Beta parameter of CutMix (images); 0 is off. With both on, each window takes one of them."""


class EmaSpec(StrictSpec):
    """An exponential moving average of the weights, which is what is evaluated and kept."""

    decay: Annotated[float, Field(gt=0, lt=1)] = 0.99
    """Per update; the first updates use (1 + n) / (10 + n) where that is less."""


class BestSpec(StrictSpec):
    """Which epoch is the best."""

    metric: str = "validation.loss"
    mode: Auto | Literal["min", "max"] = "auto"
    """Whether less or more of it is better; `auto`: follows from the metric."""

    @property
    def direction(self) -> Literal["min", "max"]:
        """`mode`, or what follows from the metric."""
        return mode_of(self.metric) if self.mode == "auto" else self.mode


class EarlyStoppingSpec(StrictSpec):
    """Stop when the `best` metric has not improved by `min_delta` for `patience` epochs."""

    patience: PositiveInt = 5
    min_delta: Annotated[float, Field(ge=0)] = 0.0


class CheckpointSpec(StrictSpec):
    """When the whole state is written, and how many are kept."""

    every_epochs: PositiveInt = 1
    every_updates: PositiveInt | None = None
    """Also inside epochs, after every so many windows."""
    keep_last: Annotated[int, Field(ge=2)] = 2
    """At least two, so that a damaged one has a predecessor."""
    keep_best: Annotated[int, Field(ge=0)] = 1
    """Checkpoints of the best epochs that stay besides the last ones."""


class ExchangeSpec(StrictSpec):
    """How gradients travel between workers: one all-reduce for each bucket and update, overlapped with backward."""

    bucket_mib: PositiveFloat = 25.0
    """Gradients are sent in pieces of about this size: larger use the network better, smaller start sooner."""
    wire: Literal["same", "bf16"] = "same"
    """`bf16` halves the bytes; sums are then rounded to 8 bits of mantissa."""


class WorkersSpec(StrictSpec):
    """Elastic workers: as many as there is room for between `min` and `max`; the global batch stays what it is."""

    min: PositiveInt = 1
    """Fewest workers with which a run goes on."""
    max: PositiveInt
    """Workers it starts with, and returns to when there is room again."""

    @model_validator(mode="after")
    def _ordered(self) -> WorkersSpec:
        if self.min > self.max:
            raise ValueError(f"min is {self.min} and max is {self.max}: min must not be above max")
        return self


class FaultSpec(StrictSpec):
    """Budgets: how often something may go wrong before the run ends."""

    nonfinite_updates: Annotated[int, Field(ge=0)] = 5
    """Windows in a row whose gradients are not finite (fp16: not counting scale-finding) before a rollback."""
    rollbacks: Annotated[int, Field(ge=0)] = 1
    """Returns to the last checkpoint, after which the offending windows are left out."""
    worker_restarts: Annotated[int, Field(ge=0)] = 3
    """Restarts of the workers after one was lost."""
    replacement_wait_s: PositiveFloat = 30.0
    """Elastic workers only: how long room for all of them is waited for before the run goes on with fewer."""
    preemptions: Annotated[int, Field(ge=0)] = 20
    """Restarts after a node's notice that it will be taken away; they do not count as lost workers."""
    collective_timeout_s: PositiveFloat = 300.0
    """A worker that is missing from an exchange for this long is named and the attempt ends."""


class CallbackSpec(StrictSpec):
    """A callback with arguments."""

    name: NamedObject
    arguments: dict[str, Any] = {}
    """Given to the class by name when training starts."""


class TrainSpec(StrictSpec):
    """How long, in which batches, on how many workers, in which precision."""

    epochs: Annotated[int, Field(gt=0, le=EPOCHS_MAX)] = 20
    max_updates: PositiveInt | None = None
    """Ends the training, and its schedule, after this many updates, be it inside an epoch, which is then evaluated."""
    max_time_s: PositiveFloat | None = None
    """Ends the training after the first update that ends later than this, resumes counted together; the epoch is then
    evaluated. How many updates that are depends on the machine."""
    batch_size_global: AutoPositiveInt = "auto"
    """Samples an update, over all workers and accumulation steps."""
    batch_size_per_worker: AutoPositiveInt = "auto"
    """Largest micro-batch of one worker; accumulation makes up the rest of the global batch. `auto`: probed when
    training starts."""
    memory_per_worker_gib: PositiveFloat | None = None
    """Memory that the probe of `batch_size_per_worker` may count on; null: what is free when training starts."""
    batch_norm_rows: Auto | Annotated[int, Field(ge=2)] | None = "auto"
    """Neighbors in the global batch that batch norm normalizes together, whatever worker and micro-batch they are in:
    results then depend on neither. null: the rows of a micro-batch, which is faster on GPUs. `auto`: an eighth of the
    global batch and at least 16 on CPUs, null on GPUs."""
    growth: GrowthSpec | None = None
    workers: AutoPositiveInt | WorkersSpec = "auto"
    """A number, or `{min: 2, max: 4}`: the run goes on with fewer when a lost worker's place does not come back."""
    precision: Auto | Literal["fp32", "bf16", "fp16"] = "auto"
    """`auto`: bf16 on a GPU that has it, fp16 on an older one, fp32 on a CPU."""
    channels_last: bool = False
    """Images and convolution weights lie in memory with the channels last: faster where the kernels like it (GPUs)."""
    compile: bool = False
    """Training forwards and backwards by torch.compile: takes up to minutes at the first update, then runs faster."""
    deterministic: bool = False
    """The same bytes from run to run on a GPU too: cuDNN, cuBLAS and torch add up in a fixed order and nothing is
    chosen by timing, which is slower. An operation that has no such form is an error that names it. A run on a CPU
    repeats its bytes without it."""
    optimizer: OptimizerSpec = OptimizerSpec()
    find_learning_rate: bool = False
    """A range test when training starts: `optimizer.learning_rate` becomes the rate at which the loss falls fastest,
    unless a search has found one."""
    schedule: ScheduleSpec = ScheduleSpec()
    loss: LossSpec = LossSpec()
    augment: AugmentSpec = AugmentSpec()
    ema: EmaSpec | None = None
    clip_norm: PositiveFloat | None = 1.0
    """Largest global gradient norm; null turns clipping off."""
    clip_norm_type: PositiveFloat | Literal["inf"] = 2.0
    """Which norm `clip_norm` bounds: 2, 1, another power, or `inf`, the largest absolute value."""
    clip_value: PositiveFloat | None = None
    """Largest absolute value of a gradient element."""
    clip_agc: PositiveFloat | None = None
    """Adaptive clipping: largest ratio of gradient norm to weight norm of an output unit (0.01 in its paper)."""
    exchange: ExchangeSpec = ExchangeSpec()
    best: BestSpec = BestSpec()
    keep: Literal["best", "last"] = "best"
    """Which epoch's weights are the result."""
    early_stopping: EarlyStoppingSpec | None = None
    checkpoint: CheckpointSpec = CheckpointSpec()
    faults: FaultSpec = FaultSpec()
    callbacks: tuple[NamedObject | CallbackSpec, ...] = ()
    """Classes of your own, `module:Class`, that are called after updates, epochs and checkpoints; see
    docs/training.md for what they may define. The module is looked for in the folder in which manta was started."""
    diagnostics_every_updates: PositiveInt | None = 200
    """How often gradients, weights, updates and activations are looked at; null turns it off."""
    log_every_updates: PositiveInt = 20
    """How often loss and speed go to the display and the curves."""
    profile_updates: PositiveInt | None = None
    """Record this many updates with torch.profiler, after the first few, into `traces/` of the run folder."""


def most_workers(workers: int | WorkersSpec) -> int:
    """The number that a run starts with."""
    return workers.max if isinstance(workers, WorkersSpec) else workers
