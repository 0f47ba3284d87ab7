"""Raw rows at /predict -> the model's tensors, and which of their values training did not have.

Invariant: a row is read by the bundle's transforms, as training read it; a value that is named as unseen is given as
the client sent it, cut to `SHOWN_CHARACTERS`; what cannot become a finite number is the client's error.

Covered: tables (objects by column name), arrays, models without transforms. Not covered: image files (images.py).
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np

from cluster.bundle.transforms import Transforms
from serve.models.model import ServedModel
from serve.protocol.codec import InferRequest
from serve.protocol.errors import bad_request
from serve.protocol.tensors import array_of_json, nested_shape

SHOWN_VALUES = 20  # of a column in one answer
SHOWN_CHARACTERS = 200
NAMED_COLUMNS = 5  # in the sentence of a refusal


@dataclass(frozen=True)
class RowsRequest(InferRequest):
    """Tensors of raw rows, and what is strange about the rows."""

    unseen: dict[str, list[Any]] = field(default_factory=dict)
    """Column -> different values, as they were sent."""
    columns: dict[int, list[str]] = field(default_factory=dict)
    """Row -> its columns with such a value."""


def read_rows(model: ServedModel, rows: list[Any]) -> RowsRequest:
    """Raises ProtocolError, DataError. Counts what training did not have."""
    transforms = model.transforms
    if isinstance(transforms, Transforms):
        return _table(model, transforms, rows)
    if transforms is not None:
        with np.errstate(over="ignore"):
            return RowsRequest(transforms.apply_rows(rows))
    if len(model.signature.inputs) != 1:
        raise bad_request("the model has several inputs and no transforms", rule="send tensors to /v2 instead")
    tensor = model.signature.inputs[0]
    datatype = "FP32" if tensor.datatype == "FP16" else tensor.datatype  # which has no form of its own in JSON
    array = array_of_json(rows, datatype, nested_shape(rows), tensor.name)
    with np.errstate(over="ignore"):
        return RowsRequest({tensor.name: array.astype(tensor.dtype, copy=False)})


def _table(model: ServedModel, transforms: Transforms, rows: list[Any]) -> RowsRequest:
    if not all(isinstance(row, dict) for row in rows):
        raise bad_request("a row is not an object", rule="rows are objects: column name -> value")
    values = transforms.read_rows(rows)
    strange = {name: np.flatnonzero(flags).tolist() for name, flags in transforms.unseen(values).items()}
    if strange:
        model.statistics.met_unseen({name: len(places) for name, places in strange.items()})
        if model.refuse_unseen:
            raise bad_request(
                _sentence(transforms, strange, rows),
                rule="serve.unseen is refuse: a category is one of training's, a number not far outside its range",
                remedy="Mend these values, or serve with unseen: answer.",
            )
    with np.errstate(over="ignore"):
        inputs = transforms.apply(values)
    if not model.allow_non_finite:
        _check_finite(transforms, inputs)
    columns: dict[int, list[str]] = {}
    for name, places in strange.items():
        for row in places:
            columns.setdefault(row, []).append(name)
    unseen = {name: _shown(rows, name, places) for name, places in strange.items()}
    return RowsRequest(inputs, unseen=unseen, columns=columns)


def _sentence(transforms: Transforms, strange: dict[str, list[int]], rows: list[Any]) -> str:
    parts = []
    for name, places in list(strange.items())[:NAMED_COLUMNS]:
        span, value = transforms.seen_range(name), _cut(rows[places[0]][name])
        what = f"far outside training's {span}" if span else "which training did not have"
        parts.append(f"column '{name}' has {value!r} in row {places[0]}, {what}")
    more = len(strange) - len(parts)
    return "; ".join(parts) + (f"; and {more} more columns" if more else "")


def _shown(rows: list[Any], name: str, places: list[int]) -> list[Any]:
    found: list[Any] = []
    for row in places:
        value = _cut(rows[row][name])
        if value not in found:
            found.append(value)
        if len(found) == SHOWN_VALUES:
            break
    return found


def _cut(value: Any) -> Any:
    return value[:SHOWN_CHARACTERS] if isinstance(value, str) else value


def _check_finite(transforms: Transforms, inputs: dict[str, np.ndarray]) -> None:
    for output in transforms.outputs:
        tensor = inputs[output.name]
        if tensor.dtype.kind != "f" or np.isfinite(tensor).all():
            continue
        row, column = np.argwhere(~np.isfinite(tensor))[0]
        raise bad_request(
            f"row {row} makes no finite number of '{output.features[column]}'",
            rule=f"the model computes in {output.datatype}",
            remedy="Send a smaller number, or null for a missing value.",
        )
