"""What a source yields before anything is fitted: arrays or a table, with targets and a digest.

Invariant: `RawData` is whole (equal lengths, at least one row) and of one layout; nothing here depends on a split.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Literal

import numpy as np

from cluster.bundle.transforms import Column, Texts, Values
from cluster.spec.data import DataSpec

Layout = Literal["image", "table", "array", "text"]
Role = Literal["number", "category", "text", "date"]
FREE = -1
ITEMS = "items"
"""The only column of a source of images or other arrays."""


@dataclass(frozen=True)
class TypedRows:
    """N rows, read by the rules."""

    values: dict[str, Values]
    """Of the feature columns. Images and other arrays are one, `ITEMS`: (N, C, H, W) or (N, …) float32."""
    target: Texts | np.ndarray
    """The target's words; of arrays (N,) labels as text, or float64."""
    keys: np.ndarray
    """(N,) uint64 hash of each row's features, or of its group: rows with equal keys stay in one split."""
    numbers: np.ndarray
    """(N,) uint64: file << `FILE_ROWS_BITS`, plus the row in it."""
    fixed: np.ndarray | None = None
    """(N,) int8 index into SPLITS, `FREE` for a row that is free, where a column or the files say it; None: all are."""
    times: np.ndarray | None = None
    """(N,) float64 to order rows by, where data.split.time asks for it."""
    groups: Texts | None = None

    def __len__(self) -> int:
        return len(self.keys)


@dataclass(frozen=True)
class TableRules:
    """How rows are read, and which columns become features: what pass one decided."""

    spec: DataSpec
    columns: tuple[Column, ...]
    roles: dict[str, Role]
    ignored: tuple[str, ...]
    lists: dict[str, str]
    """Column that is an item of a list -> the list."""
    time: Column | None
    """How the column is read that rows are ordered by."""
    notes: tuple[str, ...]
    """What was inferred or left out, as sentences."""

    def under(self, spec: DataSpec) -> TableRules:
        """The same rules under the section without `auto`."""
        parts = {"drop_columns": self.spec.drop_columns, "columns": self.spec.columns, "source": self.spec.source}
        return replace(self, spec=spec.model_copy(update=parts))


@dataclass(frozen=True)
class RawData:
    """All rows of a source, in its order."""

    layout: Layout
    rows: TypedRows
    digest: str
    """sha256 over the content of the source."""
    rules: TableRules | None = None
    """How a table was read."""
    white: float | None = None
    """Images: the value that a pixel of 255 of an image file has here; None where a file has no meaning."""
    missing_targets: dict[str, int] = field(default_factory=dict)
    """Texts of the target that are read as missing, without the empty one, and the rows of each."""
    notes: tuple[str, ...] = ()
    """What was inferred or dropped, as sentences for the event stream."""

    @property
    def item_shape(self) -> tuple[int, ...]:
        """Shape of one row, where known before preparing."""
        return np.asarray(self.rows.values[ITEMS]).shape[1:] if self.rules is None else ()
