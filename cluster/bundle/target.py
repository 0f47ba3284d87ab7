"""The transform of a regression target, as data: what the network learns in place of the target's own values.

    learned = (bend((target - center) / scale) - mean) / deviation        bend: nothing, log(1 + x), or Yeo-Johnson

Invariant: `to_unit` undoes `to_learned` in float32 as in float64, and its results are finite for every finite input:
after a bend, predictions end at `low` and `high`, a little beyond the ends of the training targets, because an
exponential makes a wild value of a slip.

Covered: one quantity a row, in NumPy and in torch by the same code (`xp` is either module). Not covered: fitting
(trainers/data/fit/target.py), the module that carries it into the exported graph (trainers/models/target.py).
"""

from __future__ import annotations

from typing import Any, Literal

import numpy as np

from cluster.spec.base import StrictSpec

TARGET_UNIT = "target_unit"
"""In a module the name of the part that brings answers back into the unit; in an exported graph its nodes' prefix.
Conversions to lower precision leave these nodes in float."""
ROUNDINGS = 4  # of float32 on the way back into the unit
TargetKind = Literal["standard", "log1p", "yeo_johnson"]


class TargetTransform(StrictSpec):
    """Fitted on training rows alone."""

    kind: TargetKind
    center: float = 0.0
    scale: float = 1.0
    """Of the target in its own unit, before the bend: mean and deviation, for Yeo-Johnson median and quartiles. Powers
    of 200,000 ± 5,000 would leave float32."""
    power: float = 1.0
    """Yeo-Johnson's λ."""
    mean: float = 0.0
    deviation: float = 1.0
    """Of the bent training targets."""
    low: float | None = None
    high: float | None = None
    """Limits of bent values; null without a bend."""
    spread: float
    """Deviation of the training targets in their own unit: differences are judged by it."""

    def bent(self, targets: Any, xp: Any = np) -> Any:
        """Targets of any shape, before the second standardization."""
        values = (targets - self.center) / self.scale
        if self.kind == "log1p":
            return xp.log1p(values)
        return _yeo_johnson(values, self.power, xp) if self.kind == "yeo_johnson" else values

    def to_learned(self, targets: Any, xp: Any = np) -> Any:
        """What the network is to answer for these targets."""
        return (self.bent(targets, xp) - self.mean) / self.deviation

    def to_unit(self, learned: Any, xp: Any = np) -> Any:
        """Answers of the network in the target's own unit."""
        if self.kind == "standard":
            return learned * self.scale + self.center
        values = xp.clip(learned * self.deviation + self.mean, self.low, self.high)
        if self.kind == "log1p":
            return xp.expm1(values)
        return _yeo_johnson_back(values, self.power, xp) * self.scale + self.center

    def allowed(self, values: np.ndarray, absolute: float, relative: float) -> np.ndarray:
        """The largest difference from `values` that counts as none: `absolute` in deviations of the training targets,
        `relative` to the distance from the center (a thousandth of 200,000 ± 3,000 would be much), and what float32
        rounds."""
        values = values.astype(np.float64)
        rounding = ROUNDINGS * np.finfo(np.float32).eps * np.abs(values)
        return absolute * self.spread + relative * np.abs(values - self.center) + rounding


def _yeo_johnson(values: Any, power: float, xp: Any) -> Any:
    """Yeo and Johnson (2000), through log1p and expm1: no digits are lost near λ = 0 and λ = 2."""
    up, down = xp.log1p(xp.clip(values, 0.0, None)), xp.log1p(xp.clip(-values, 0.0, None))
    return xp.where(values >= 0, _raised(up, power, xp), -_raised(down, 2.0 - power, xp))


def _raised(logarithm: Any, power: float, xp: Any) -> Any:
    """((1 + x)^p - 1) / p of log(1 + x)."""
    return xp.expm1(power * logarithm) / power if power else logarithm


def _yeo_johnson_back(bent: Any, power: float, xp: Any) -> Any:
    up, down = xp.clip(bent, 0.0, None), xp.clip(-bent, 0.0, None)
    return xp.where(bent >= 0, _lowered(up, power, xp), -_lowered(down, 2.0 - power, xp))


def _lowered(raised: Any, power: float, xp: Any) -> Any:
    """x of ((1 + x)^p - 1) / p."""
    return xp.expm1(xp.log1p(power * raised) / power if power else raised)
