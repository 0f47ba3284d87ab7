"""Fitted transforms of images and arrays: raw values (or decoded pixels) -> the model's tensor. NumPy only.

Invariant: training makes its shards with `apply`, and serving answers with it; a row's result depends on the row and
these fields alone.

Covered: standardizing, raw rows as nested lists or by name, decoded pixels of an image file. Not covered: decoding and
resizing image files (serve/doors/images.py, trainers/data/read/images.py: both follow `Pixels`).
"""

from __future__ import annotations

import difflib
from collections.abc import Mapping, Sequence
from typing import Annotated, Any, Literal

import numpy as np
from pydantic import Field, model_validator

from cluster.bundle.signature import TensorSpec
from cluster.errors import DataError
from cluster.spec.base import StrictSpec

Size = Annotated[int, Field(gt=0)]
NESTING_MAX = 64  # numpy 2 has no array of more axes
PIXEL_MAX = 255.0  # of an 8-bit image


def holds_flags(data: Any) -> bool:
    """Whether nested lists hold true or false, which numpy takes for 1 and 0 beside numbers. No recursion."""
    level = data if isinstance(data, list | tuple) else (data,)
    for _ in range(NESTING_MAX):
        kinds = set(map(type, level))
        if bool in kinds or np.bool_ in kinds:
            return True
        if kinds.isdisjoint((list, tuple)):
            return False
        level = [child for each in level if isinstance(each, list | tuple) for child in each]
    return False


class Standardize(StrictSpec):
    """(x - mean) / deviation in float64, one pair a channel of an image or a feature of an array."""

    op: Literal["standardize"] = "standardize"
    shape: tuple[Size, ...]
    """Shape of `mean` and `deviation`; it broadcasts against one row."""
    mean: tuple[Annotated[float, Field(allow_inf_nan=False)], ...]
    deviation: tuple[Annotated[float, Field(gt=0, allow_inf_nan=False)], ...]

    @model_validator(mode="after")
    def _whole(self) -> Standardize:
        if not len(self.mean) == len(self.deviation) == int(np.prod(self.shape)):
            raise ValueError(f"mean and deviation need {int(np.prod(self.shape))} values each")
        return self

    def apply(self, rows: np.ndarray) -> np.ndarray:
        mean, deviation = (np.array(values).reshape(self.shape) for values in (self.mean, self.deviation))
        return (rows - mean) / deviation

    def undo(self, rows: np.ndarray) -> np.ndarray:
        """The inverse of `apply`."""
        mean, deviation = (np.array(values).reshape(self.shape) for values in (self.mean, self.deviation))
        return rows * deviation + mean


class Pixels(StrictSpec):
    """How an image file becomes a raw row: decoded to gray or RGB, resized where it has another size, then scaled."""

    channels: Literal[1, 3]
    """1: ITU-R 601-2 luma (Pillow's mode L); 3: RGB, transparency dropped."""
    height: Size
    width: Size
    interpolation: Literal["bilinear"] = "bilinear"
    """Pillow's bilinear filter over the covered area, on 8-bit pixels."""
    white: Annotated[float, Field(gt=0)]
    """Raw value of a pixel of 255: 255 where training read 8-bit images, 16 for scikit-learn's digits, …"""

    def raw(self, image: np.ndarray) -> np.ndarray:
        """(H, W) or (H, W, 3) uint8 -> (C, H, W) float32 raw values."""
        wanted = (self.height, self.width) if self.channels == 1 else (self.height, self.width, 3)
        if image.shape != wanted or image.dtype != np.uint8:
            raise DataError(
                "Cannot use the image",
                found=f"it has shape {list(image.shape)} of {image.dtype}",
                rule=f"the model takes {list(wanted)} of uint8",
            )
        planes = image[None] if self.channels == 1 else np.moveaxis(image, -1, 0)
        return (planes.astype(np.float64) * (self.white / PIXEL_MAX)).astype(np.float32)


class ArrayTransforms(StrictSpec):
    """All that lies between a raw array or image and the model's only input."""

    format: Literal["manta.array_transforms"] = "manta.array_transforms"
    format_version: Literal[1] = 1
    name: str
    """The model's input; a row may be given as `{name: values}`."""
    item_shape: Annotated[tuple[Size, ...], Field(min_length=1)]
    """Shape of one raw row, which is that of one row of the tensor."""
    steps: Annotated[tuple[Standardize, ...], Field(min_length=1)]
    pixels: Pixels | None = None
    """null: an image file has no meaning for this model."""

    @model_validator(mode="after")
    def _fitting(self) -> ArrayTransforms:
        for step in self.steps:
            short = len(self.item_shape) - len(step.shape)
            pairs = zip(step.shape, self.item_shape[max(short, 0) :], strict=False)
            if short < 0 or any(size not in (1, whole) for size, whole in pairs):
                raise ValueError(f"values of shape {step.shape} do not fit rows of shape {self.item_shape}")
        if self.pixels and (self.pixels.channels, self.pixels.height, self.pixels.width) != self.item_shape:
            raise ValueError(f"the pixels do not fit rows of shape {self.item_shape}")
        return self

    def to_json(self) -> dict[str, Any]:
        """JSON-able form for transforms.json."""
        return self.model_dump(mode="json")

    def signature(self) -> tuple[TensorSpec, ...]:
        """The tensor that `apply` returns."""
        return (TensorSpec(name=self.name, datatype="FP32", shape=(-1, *self.item_shape)),)

    def apply(self, raw: np.ndarray) -> dict[str, np.ndarray]:
        """(N, *item_shape) float32 raw values -> the tensor. Computed in float64 and cast last."""
        values: np.ndarray = raw
        for step in self.steps:
            values = step.apply(values)
        return {self.name: values.astype(np.float32)}

    def undo(self, tensors: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        """The inverse of `apply`, for graphs that standardize themselves: raw values within float32's rounding."""
        values: np.ndarray = tensors[self.name]
        for step in reversed(self.steps):
            values = step.undo(values)
        return {self.name: values.astype(np.float32)}

    def apply_rows(self, rows: Sequence[Any]) -> dict[str, np.ndarray]:
        """Raw rows, each nested lists or `{name: nested lists}` -> the tensor. Raises DataError."""
        return self.apply(np.stack([self._row(number, row) for number, row in enumerate(rows)]))

    def _row(self, number: int, row: Any) -> np.ndarray:
        """One raw row as (*item_shape) float32. A leading axis of one channel may be left out."""
        if isinstance(row, Mapping):
            row = self._named(number, row)
        if holds_flags(row):
            raise self._unfit(f"row {number} holds true or false, which are no numbers")
        try:
            with np.errstate(over="ignore"):
                values = np.asarray(row, dtype=np.float32)
        except (TypeError, ValueError, OverflowError):
            raise self._unfit(f"row {number} is no array of numbers (FP32)") from None
        if self.item_shape[0] == 1 and values.shape == self.item_shape[1:]:
            values = values[None]
        if values.shape != self.item_shape:
            raise self._unfit(f"row {number} has shape {list(values.shape)}")
        if not np.isfinite(values).all():
            raise self._unfit(f"row {number} holds NaN or infinity")
        return values

    def _named(self, number: int, row: Mapping[str, Any]) -> Any:
        unknown = sorted(str(name) for name in row if name != self.name)
        if not unknown and self.name in row:
            return row[self.name]
        parts = [] if self.name in row else [f"input '{self.name}' is missing in row {number}"]
        for name in unknown:
            close = difflib.get_close_matches(name, [self.name], n=1)
            parts.append(f"input '{name}' is unknown" + (f" (did you mean '{close[0]}'?)" if close else ""))
        raise self._unfit("; ".join(parts))

    def _unfit(self, found: str) -> DataError:
        return DataError(
            "Cannot use the rows",
            found=found,
            rule=f"a row is {{'{self.name}': values}} or the values alone, finite numbers of shape "
            f"{list(self.item_shape)} as they were before training's standardizing",
        )
