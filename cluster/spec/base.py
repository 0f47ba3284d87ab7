"""What every section of the YAML shares: strict, frozen, no unknown keys, `auto` as a visible word.

Invariant: a knob cannot be misspelt (`extra="forbid"`), cannot change after loading (`frozen`), is never coerced from
another type (`strict`), and no number is NaN or infinite.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Sequence
from typing import Annotated, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict, Field

OWN = re.compile(r"[A-Za-z_][\w.]*:[A-Za-z_]\w*")


def check_named_object(name: str) -> str:
    """Raise ValueError for a text that is not `module:name`."""
    if not OWN.fullmatch(name):
        raise ValueError("must be module:name, such as my_package.my_module:MyClass")
    return name


def one_of_or_own(names: Sequence[str], name: str) -> str:
    """Raise ValueError for a text that is neither one of `names` nor `module:name`."""
    if name in names or OWN.fullmatch(name):
        return name
    close = difflib.get_close_matches(name, names, n=1)
    hint = f" (did you mean {close[0]}?)" if close else ""
    raise ValueError(f"must be one of {', '.join(names)}, or module:name of your own{hint}")


Auto = Literal["auto"]
AutoPositiveInt = Auto | Annotated[int, Field(gt=0)]
PositiveInt = Annotated[int, Field(gt=0)]
PositiveFloat = Annotated[float, Field(gt=0)]
Share = Annotated[float, Field(ge=0, lt=1)]
Fraction = Annotated[float, Field(ge=0, le=1)]
Seed = Annotated[int, Field(ge=0, lt=1 << 32)]
"""What NumPy, scikit-learn and torch all take."""
NamedObject = Annotated[str, AfterValidator(check_named_object)]
"""`module:name`, importable from the folder in which manta was started."""


class StrictSpec(BaseModel):
    """Base of every section. A string literal under a field is its documentation and goes into the JSON Schema."""

    model_config = ConfigDict(
        extra="forbid", frozen=True, strict=True, allow_inf_nan=False, use_attribute_docstrings=True
    )
