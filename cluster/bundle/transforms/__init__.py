"""Fitted transforms as data: raw rows by column name -> the model's tensors. NumPy only, a closed vocabulary.

    transforms = load_transforms(json.loads(text))
    tensors = transforms.apply_rows([{"age": 39, "workclass": "State-gov"}])

Invariant: training makes its shards with this code and serving answers with it, so that the same raw row gives the
same tensor on both sides; loading never runs code.

Covered: format, schema check, apply to rows and to whole columns; images and arrays have a form of their own
(arrays.py). Not covered: fitting (trainers/data/fit/table.py, trainers/data/fit/arrays.py).
"""

from __future__ import annotations

import difflib
import json
from collections.abc import Mapping, Sequence, Set
from functools import cached_property
from typing import Annotated, Any, Literal

import numpy as np
from pydantic import Field, ValidationError

from cluster.bundle.signature import DATATYPE_OF, Datatype, TensorSpec
from cluster.bundle.transforms.arrays import ArrayTransforms, Pixels, Standardize
from cluster.bundle.transforms.columns import Column, Texts, Values
from cluster.bundle.transforms.dates import written
from cluster.bundle.transforms.seen import SeenColumn, SeenNumbers
from cluster.bundle.transforms.steps import Step, apply_steps
from cluster.errors import BundleError, DataError
from cluster.spec.base import StrictSpec

FORMAT_VERSION = 1


class Block(StrictSpec):
    """Columns that go through the same steps, and the features that come out."""

    columns: Annotated[tuple[str, ...], Field(min_length=1)]
    """Several number columns are stacked into one matrix; a text column stands alone."""
    steps: tuple[Step, ...]
    features: tuple[str, ...]
    """Name of each column of the result."""


class Selection(StrictSpec):
    """Why an output has these columns: evidence, which no answer depends on."""

    method: str
    kept: tuple[str, ...]
    """Names of the columns that were chosen, in their order."""
    scores: dict[str, float]
    """Every column's score on the training rows, the ones that were left out too."""


class Output(StrictSpec):
    """One tensor of the model: blocks side by side, then a choice of columns."""

    name: str
    datatype: Datatype = "FP32"
    blocks: Annotated[tuple[Block, ...], Field(min_length=1)]
    selected: tuple[int, ...] | None = None
    """Columns that feature selection kept; null keeps all."""
    selection: Selection | None = None

    @property
    def features(self) -> tuple[str, ...]:
        """Names of the tensor's columns."""
        names = [name for block in self.blocks for name in block.features]
        return tuple(names if self.selected is None else (names[index] for index in self.selected))


class Transforms(StrictSpec):
    """All that lies between a raw row and the model."""

    format: Literal["manta.transforms"] = "manta.transforms"
    format_version: Literal[1] = 1
    columns: tuple[Column, ...]
    ignored: tuple[str, ...] = ()
    """Columns that a row may carry and nothing uses: the target, dropped and constant ones."""
    outputs: Annotated[tuple[Output, ...], Field(min_length=1)]
    seen: dict[str, SeenColumn] = {}
    """Column -> what training saw of it; a column that is not here is never said to be unseen."""
    example: dict[str, Any] = {}
    """A raw row of training as a client would send it; empty where none was kept."""

    def to_json(self) -> dict[str, Any]:
        """JSON-able form for transforms.json."""
        return self.model_dump(mode="json")

    def signature(self) -> tuple[TensorSpec, ...]:
        """The tensors that `apply_rows` returns."""
        return tuple(
            TensorSpec(name=output.name, datatype=output.datatype, shape=(-1, len(output.features)))
            for output in self.outputs
        )

    def apply_rows(self, rows: Sequence[Mapping[str, Any]]) -> dict[str, np.ndarray]:
        """Raw rows -> tensors (N, F). A value of null, NaN or a missing text is missing.

        Raises DataError for columns that training did not know, or that a row lacks, and for values of another kind.
        """
        return self.apply(self.read_rows(rows))

    def read_rows(self, rows: Sequence[Mapping[str, Any]]) -> dict[str, Values]:
        """Raw rows -> values by column, as `apply` takes them. Raises DataError."""
        rows = [self._flat(row) for row in rows]
        self.check_schema(rows)
        return {column.name: self._read(column, [row[column.name] for row in rows]) for column in self.columns}

    def _flat(self, row: Mapping[str, Any]) -> Mapping[str, Any]:
        """The row with objects and lists of numbers as columns of their parts, where training read them so."""
        names = self._names
        if not isinstance(row, Mapping) or row.keys() <= names:
            return row
        flat: dict[str, Any] = {}
        for name, value in row.items():
            parts = () if name in names else [part for part in names if part.startswith((f"{name}.", f"{name}["))]
            if parts and value is None:
                flat |= dict.fromkeys(parts)
            elif parts and isinstance(value, Mapping | list | tuple | np.ndarray):
                flat |= _parts(str(name), value, names)
            else:
                flat[name] = value
        return flat

    @cached_property
    def _names(self) -> frozenset[str]:
        return frozenset((*(column.name for column in self.columns), *self.ignored))

    def unseen(self, values: Mapping[str, Values]) -> dict[str, np.ndarray]:
        """Column -> (N,) bool, for columns with a category that training did not have or a number far outside its
        range (seen.py)."""
        found = {name: seen.strange(values[name]) for name, seen in self.seen.items() if name in values}
        return {name: strange for name, strange in found.items() if strange.any()}

    def seen_range(self, name: str) -> str:
        """The smallest and largest training value of a number or date column, in words; empty for another one."""
        seen = self.seen.get(name)
        column = next((column for column in self.columns if column.name == name), None)
        if column is None or not isinstance(seen, SeenNumbers):
            return ""
        if column.kind == "date":
            return f"{written(seen.low, column.date)} to {written(seen.high, column.date)}"
        return f"{seen.low:g} to {seen.high:g}"

    def _read(self, column: Column, raw: list[Any]) -> Values:
        if column.kind != "text" and not self._takes_flags(column.name):
            row = next((row for row, value in enumerate(raw) if isinstance(value, bool | np.bool_)), None)
            if row is not None:
                raise DataError(
                    f"Cannot read column '{column.name}'",
                    found=f"row {row} has {str(raw[row]).lower()}",
                    rule="true and false are no numbers, unless a column of training holds nothing but 0 and 1",
                    remedy="Send a number, or null for a missing value.",
                )
        return column.from_rows(raw)

    def _takes_flags(self, name: str) -> bool:
        seen = self.seen.get(name)
        return isinstance(seen, SeenNumbers) and seen.takes_flags

    def apply(self, values: Mapping[str, Values]) -> dict[str, np.ndarray]:
        """Values by column, already read by the columns' rules, -> tensors."""
        return {output.name: _tensor(output, values) for output in self.outputs}

    def check_schema(self, rows: Sequence[Mapping[str, Any]]) -> None:
        """Raise DataError when rows have other columns than training had; the message names all of them."""
        wanted = {column.name for column in self.columns}
        allowed = wanted | set(self.ignored)
        missing: dict[str, int] = {}
        unknown: dict[str, int] = {}
        for number, row in enumerate(rows):
            if not isinstance(row, Mapping):
                raise DataError("Cannot use the rows", found=f"row {number} is no mapping of column names to values")
            for name in wanted - row.keys():
                missing.setdefault(name, number)
            for name in row.keys() - allowed:
                unknown.setdefault(str(name), number)
        if not missing and not unknown:
            return
        parts = [f"column '{name}' is missing in row {row}" for name, row in sorted(missing.items())]
        parts += [f"column '{name}' is unknown{_nearest(name, allowed)}" for name in sorted(unknown)]
        raise DataError(
            "Cannot use the rows",
            found="; ".join(parts),
            rule="a row has the columns of training: " + ", ".join(column.name for column in self.columns),
            remedy="Send null for a missing value.",
            details={"missing": sorted(missing), "unknown": sorted(unknown)},
        )


def load_transforms(raw: Mapping[str, Any]) -> Transforms | ArrayTransforms:
    """The content of transforms.json. Raises BundleError for another format or a broken rule."""
    attempted = "Cannot load transforms.json"
    form: type[Transforms] | type[ArrayTransforms] | None = FORMATS.get(str(raw.get("format")))
    if form is None or raw.get("format_version") != FORMAT_VERSION:
        raise BundleError(
            attempted,
            found=f"it has format {raw.get('format')!r}, version {raw.get('format_version')!r}",
            rule=f"this Manta reads version {FORMAT_VERSION} of {' and '.join(FORMATS)}",
            remedy="Make the bundle again.",
        )
    try:
        return form.model_validate_json(json.dumps(raw))
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        where = ".".join(map(str, first["loc"]))
        raise BundleError(attempted, found=f"it breaks a rule at {where}: {first['msg']}") from None


FORMATS: dict[str, type[Transforms] | type[ArrayTransforms]] = {
    "manta.transforms": Transforms,
    "manta.array_transforms": ArrayTransforms,
}


def _tensor(output: Output, values: Mapping[str, Values]) -> np.ndarray:
    """(N, F) of an output's datatype. Blocks are computed in float64 and cast last."""
    dtype = {name: dtype for dtype, name in DATATYPE_OF.items()}[output.datatype]
    parts = [apply_steps(block.steps, _block_input(block, values)).astype(dtype) for block in output.blocks]
    joined = parts[0] if len(parts) == 1 else np.concatenate(parts, axis=1)
    return joined if output.selected is None else np.ascontiguousarray(joined[:, list(output.selected)])


def _block_input(block: Block, values: Mapping[str, Values]) -> Values:
    first = values[block.columns[0]]
    if isinstance(first, Texts):
        return first
    return np.stack([np.asarray(values[name]) for name in block.columns], axis=1)


def _parts(name: str, value: Any, names: Set[str]) -> dict[str, Any]:
    """`name.field` of an object and `name[0]` of a list, as deep as `names` go."""
    if name in names:
        return {name: value}
    if isinstance(value, Mapping):
        pairs = [(f"{name}.{key}", part) for key, part in value.items()]
    elif isinstance(value, list | tuple | np.ndarray):
        pairs = [(f"{name}[{place}]", part) for place, part in enumerate(value)]
    else:
        return {name: value}
    return {key: found for part_name, part in pairs for key, found in _parts(part_name, part, names).items()}


def _nearest(name: str, names: set[str]) -> str:
    close = difflib.get_close_matches(str(name), sorted(names), n=1)
    return f" (did you mean '{close[0]}'?)" if close else ""


__all__ = [
    "ArrayTransforms", "Block", "Column", "Output", "Pixels", "Selection", "Standardize", "Texts", "Transforms",
    "Values", "load_transforms",
]  # fmt: skip
