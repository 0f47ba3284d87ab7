"""`train.optimizer` and `train.schedule`: which rule moves the weights, and how fast.

Invariant: a constant that is not given is the optimizer's own; one that the optimizer has no use for is an error of
`manta check` (rules.py), and never silently ignored.
"""

from __future__ import annotations

from functools import partial
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, Field, model_validator

from cluster.spec.base import Fraction, PositiveFloat, PositiveInt, Share, StrictSpec, one_of_or_own

ADAM = {"betas": (0.9, 0.999), "eps": 1e-8}
CONSTANTS: dict[str, dict[str, Any]] = {
    "adamw": ADAM,
    "adam": ADAM,
    "sgd": {"momentum": 0.9, "nesterov": False},
    "lion": {"betas": (0.9, 0.99)},  # arXiv:2302.06675, section 4
    "muon": {"momentum": 0.95, "nesterov": True, **ADAM},
    "adafactor": {},
    "schedule_free": ADAM,
}
"""Optimizer -> the constants that it has, with the values of its paper or of torch."""
SHAPES = (
    "constant", "linear", "cosine", "cosine_restarts", "polynomial", "step", "exponential", "inverse_sqrt", "wsd",
    "one_cycle",
)  # fmt: skip


class ParameterGroupSpec(StrictSpec):
    """Options of the parameters whose names match. Where several groups match, each option is the last one's."""

    match: Annotated[str, Field(min_length=1)]
    """A shell pattern on the parameter's name, such as `head.*` or `*.bias`; one that matches none is an error."""
    learning_rate_factor: Annotated[float, Field(ge=0)] | None = None
    """Times the learning rate."""
    weight_decay: Annotated[float, Field(ge=0)] | None = None
    """In place of `optimizer.weight_decay`, for biases and norms too."""
    freeze: bool | None = None
    """true: the parameters keep the values that they start with. Running statistics of batch norm still move."""


class OptimizerSpec(StrictSpec):
    """The optimizer and its constants."""

    name: Annotated[str, AfterValidator(partial(one_of_or_own, tuple(CONSTANTS)))] = "adamw"
    """`adamw`, `adam` (decay as a part of the gradient), `sgd`, `lion`, `muon` (for weights with two axes, AdamW for
    the others and for embeddings and the last layer, both with this learning rate), `adafactor`, `schedule_free`
    (AdamW without a schedule: evaluates an average of its own), or `module:function` of your own."""
    learning_rate: PositiveFloat = 3e-3
    """Peak learning rate, at the end of warm-up, before `scaling`."""
    weight_decay: Annotated[float, Field(ge=0)] = 0.01
    """Not applied to biases and norms."""
    l1: Annotated[float, Field(ge=0)] = 0.0
    """Weight of the sum of absolute values in the loss, of the parameters that decay would apply to. Its gradient is
    clipped with the rest."""
    momentum: Share | None = None
    """`sgd` (0.9) and `muon` (0.95); null: that value."""
    nesterov: bool | None = None
    """`sgd` (false) and `muon` (true); null: that value."""
    betas: tuple[Share, Share] | None = None
    """`adamw`, `adam`, `schedule_free`, AdamW's part of `muon` (0.9, 0.999) and `lion` (0.9, 0.99); null: these."""
    eps: PositiveFloat | None = None
    """Added to Adam's denominators; null: 1e-8."""
    options: dict[str, Any] = {}
    """Arguments of a function of your own, which is called as `function(groups, **options)` and returns a
    `torch.optim.Optimizer`; `groups` is a list of torch's parameter groups."""
    groups: tuple[ParameterGroupSpec, ...] = ()
    """Options of parameters by their names."""
    layer_decay: Annotated[float, Field(gt=0, le=1)] | None = None
    """Learning rate of each layer as a share of that of the layer after it; the last one has the full rate. Layers are
    the numbered parts of names (`blocks.3`); what lies between numbered parts is one layer."""
    scaling: Literal["none", "linear", "sqrt"] = "none"
    """How the peak follows the global batch: times (batch / scaling_base), or times its square root."""
    scaling_base: PositiveInt = 256
    """Global batch at which `learning_rate` holds as written."""

    @property
    def is_own(self) -> bool:
        """Whether it is the user's function."""
        return ":" in self.name

    def constant(self, name: str) -> Any:
        """A constant as given, or the optimizer's own."""
        given = getattr(self, name)
        return CONSTANTS[self.name][name] if given is None else given

    @property
    def idle(self) -> list[str]:
        """Constants that are given and that the optimizer does not have."""
        has = {} if self.is_own else CONSTANTS[self.name]
        idle = [name for name in ("momentum", "nesterov", "betas", "eps") if name not in has]
        return [name for name in idle if getattr(self, name) is not None] + ["options"] * (
            bool(self.options) and not self.is_own
        )


class PlateauSpec(StrictSpec):
    """Lower the learning rate by `factor` when the `best` metric has not improved for `patience` epochs."""

    factor: Annotated[float, Field(gt=0, lt=1)] = 0.5
    patience: Annotated[int, Field(ge=0)] = 3
    min_delta: Annotated[float, Field(ge=0)] = 0.0
    floor: Share = 0.0
    """Least product of all reductions."""


class ScheduleSpec(StrictSpec):
    """Learning rate as a pure function of the update index."""

    name: Annotated[str, AfterValidator(partial(one_of_or_own, SHAPES))] = "cosine"
    """`constant`, `linear`, `cosine`, `cosine_restarts`, `polynomial`, `step`, `exponential`, `inverse_sqrt`, `wsd`,
    `one_cycle`, or `module:function` of your own, called as `function(update, updates_total)`: the share of the peak at
    an update counted from 0, warm-up included."""
    warmup: Fraction = 0.05
    """Share of all updates that rise linearly to the peak (one_cycle: on half a cosine)."""
    warmup_updates: Annotated[int, Field(ge=0)] | None = None
    """The warm-up in updates, in place of `warmup`."""
    warmup_epochs: Annotated[float, Field(ge=0)] | None = None
    """The warm-up in epochs, in place of `warmup`."""
    floor: Fraction = 0.01
    """Share of the peak at the last update; `constant` has none."""
    eta_min: Annotated[float, Field(ge=0)] | None = None
    """The learning rate at the last update, in place of `floor`; at most the peak."""
    power: PositiveFloat = 2.0
    """`polynomial` only."""
    cycles: PositiveInt = 3
    """`cosine_restarts` only: number of cosines after warm-up."""
    t_mult: Annotated[float, Field(ge=1)] = 1.0
    """`cosine_restarts` only: each cosine is this many times as long as the one before it."""
    milestones: Annotated[tuple[Annotated[float, Field(gt=0, lt=1)], ...], Field(min_length=1)] = (0.5, 0.75)
    """`step` only: shares of the updates after warm-up at which it falls; equal factors lead to the floor."""
    decay: Annotated[float, Field(gt=0, le=1)] = 0.2
    """`wsd` only: share of the updates after warm-up in which it falls linearly."""
    plateau: PlateauSpec | None = None
    """Multiplied on top of the schedule."""

    @property
    def is_own(self) -> bool:
        """Whether it is the user's function."""
        return ":" in self.name

    @model_validator(mode="after")
    def _positive_floor(self) -> ScheduleSpec:
        floor = self.floor if self.eta_min is None else self.eta_min
        if self.name in ("exponential", "step") and floor == 0:
            key = "floor" if self.eta_min is None else "eta_min"
            raise ValueError(f"schedule {self.name} falls by factors and never reaches 0: set {key} above 0")
        if self.warmup_updates is not None and self.warmup_epochs is not None:
            raise ValueError("give warmup_updates or warmup_epochs, not both")
        return self
