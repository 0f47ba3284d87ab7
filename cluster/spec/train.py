"""`train`: how the network is optimized. The global batch is a fact; workers and accumulation follow from it."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from cluster.spec.base import Auto, AutoPositiveInt, Fraction, PositiveFloat, StrictSpec


class OptimizerSpec(StrictSpec):
    """The optimizer and its constants."""

    name: Literal["adamw", "sgd"] = "adamw"
    learning_rate: PositiveFloat = 3e-3
    """Peak learning rate, at the end of warm-up."""
    weight_decay: Annotated[float, Field(ge=0)] = 0.01
    """Not applied to biases and norms."""
    momentum: Annotated[float, Field(ge=0, lt=1)] = 0.9
    """SGD only."""


class ScheduleSpec(StrictSpec):
    """Learning rate as a pure function of the update index."""

    name: Literal["cosine", "linear", "constant"] = "cosine"
    warmup: Fraction = 0.05
    """Share of all updates that rise linearly to the peak."""
    floor: Fraction = 0.01
    """Share of the peak at the last update."""


class TrainSpec(StrictSpec):
    """How long, in which batches, on how many workers, in which precision."""

    epochs: Annotated[int, Field(gt=0)] = 20
    batch_size_global: AutoPositiveInt = "auto"
    """Samples an update, over all workers and accumulation steps."""
    batch_size_per_worker: AutoPositiveInt = "auto"
    """Largest micro-batch of one worker; accumulation makes up the rest of the global batch."""
    workers: AutoPositiveInt = "auto"
    precision: Auto | Literal["fp32", "bf16", "fp16"] = "auto"
    """`auto`: bf16 on a GPU that has it, fp16 on an older one, fp32 on a CPU."""
    optimizer: OptimizerSpec = OptimizerSpec()
    schedule: ScheduleSpec = ScheduleSpec()
    clip_norm: PositiveFloat | None = 1.0
    """Largest global gradient norm; null turns clipping off."""
