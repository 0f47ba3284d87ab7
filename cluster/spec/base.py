"""What every section of the YAML shares: strict, frozen, no unknown keys, `auto` as a visible word.

Invariant: a knob cannot be misspelt (`extra="forbid"`), cannot change after loading (`frozen`), is never coerced from
another type (`strict`), and no number is NaN or infinite.
"""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field

Auto = Literal["auto"]
AutoPositiveInt = Auto | Annotated[int, Field(gt=0)]
PositiveFloat = Annotated[float, Field(gt=0)]
Fraction = Annotated[float, Field(ge=0, le=1)]
Seed = Annotated[int, Field(ge=0, lt=1 << 32)]
"""What NumPy, scikit-learn and torch all take."""


class StrictSpec(BaseModel):
    """Base of every section. A string literal under a field is its documentation and goes into the JSON Schema."""

    model_config = ConfigDict(
        extra="forbid", frozen=True, strict=True, allow_inf_nan=False, use_attribute_docstrings=True
    )
