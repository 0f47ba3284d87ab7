"""`compress`: which recipes are tried, and what a candidate may cost."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from cluster.spec.base import Fraction, StrictSpec


class BudgetSpec(StrictSpec):
    """The largest loss of quality that is accepted, measured on the gate split."""

    metric: Literal["accuracy"] = "accuracy"
    max_drop: Fraction = 0.01
    """Absolute: 0.01 is one percentage point."""


class CompressSpec(StrictSpec):
    """Compression of the exported graph, accepted or rejected by measurement."""

    recipes: Annotated[tuple[Literal["int8_static"], ...], Field(min_length=1)] = ("int8_static",)
    budget: BudgetSpec = BudgetSpec()
    on_inconclusive: Literal["keep_baseline", "accept_point_estimate"] = "accept_point_estimate"
    """What happens when the gate split is too small to decide."""
    calibration_rows: Annotated[int, Field(gt=0)] = 512
