"""`search`: which values of the spec are tried, how many trials, when a trial is stopped early."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Field

from cluster.spec.base import Auto, AutoPositiveInt, PositiveFloat, Seed, StrictSpec
from cluster.spec.train import mode_of


class Choice(StrictSpec):
    """One of a list of values."""

    kind: Literal["choice"]
    values: Annotated[tuple[Any, ...], Field(min_length=1)]


class LogUniform(StrictSpec):
    """A float whose logarithm is uniform: for learning rates."""

    kind: Literal["log_uniform"]
    low: PositiveFloat
    high: PositiveFloat


class Uniform(StrictSpec):
    """A float between two bounds."""

    kind: Literal["uniform"]
    low: float
    high: float


class IntUniform(StrictSpec):
    """An integer between two bounds, both included."""

    kind: Literal["int_uniform"]
    low: int
    high: int


Domain = Annotated[Choice | LogUniform | Uniform | IntUniform, Field(discriminator="kind")]


class SearchSpec(StrictSpec):
    """A Ray Tune search. Keys of `space` are dotted paths of this same spec."""

    space: Annotated[dict[str, Domain], Field(min_length=1)]
    trials: Annotated[int, Field(gt=0)] = 8
    epochs: AutoPositiveInt = "auto"
    """Epochs of a trial that is never stopped; `auto`: those of `train.epochs`."""
    metric: str = "validation.loss"
    mode: Auto | Literal["min", "max"] = "auto"
    """Whether less or more of it is better; `auto`: follows from the metric."""
    start: tuple[dict[str, Any], ...] = ()
    """Points to try first, after the configuration as written; a path left out keeps its written value."""
    transfer: Annotated[int, Field(ge=0)] = 0
    """Try the winners of up to this many other runs beside this one that searched the same space."""
    scheduler: Literal["asha", "hyperband", "median", "none"] = "asha"
    """When a trial is stopped: below the best third of its rung; the same with several grace periods; below the
    median of the running means; never."""
    grace_epochs: Annotated[int, Field(gt=0)] = 2
    """No trial is stopped before this many epochs."""
    reduction_factor: Annotated[int, Field(gt=1)] = 3
    concurrency: AutoPositiveInt = "auto"
    repeats: Annotated[int, Field(ge=0)] = 0
    """Train the two best points again with this many other seeds, and choose between them by the mean."""
    seed: Seed = 7

    @property
    def direction(self) -> Literal["min", "max"]:
        """`mode`, or what follows from the metric."""
        return mode_of(self.metric) if self.mode == "auto" else self.mode
