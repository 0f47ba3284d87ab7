"""What a source yields before anything is fitted: arrays or a table, with targets and a digest.

Invariant: `RawData` is whole (equal lengths, at least one row) and of one layout; nothing here depends on a split.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

import numpy as np

from cluster.bundle.transforms import Column, Texts, Values
from cluster.spec.data import DataSpec

Layout = Literal["image", "table", "array", "text"]
Role = Literal["number", "category", "text", "date"]
FREE = -1


@dataclass(frozen=True)
class Table:
    """Feature columns after cleaning, with the rules by which serving reads the same columns."""

    columns: tuple[Column, ...]
    values: dict[str, Values]
    roles: dict[str, Role]
    ignored: tuple[str, ...] = ()
    """Columns of the source that no feature is made of."""
    lists: dict[str, str] = field(default_factory=dict)
    """Column that is an item of a list -> the list, which becomes an input of its own."""


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

    def table(self, values: dict[str, Values]) -> Table:
        """Rows that were read by these rules."""
        return Table(self.columns, values, self.roles, self.ignored, self.lists)


@dataclass(frozen=True)
class RawData:
    """Rows of a source, in its order."""

    layout: Layout
    targets: np.ndarray
    """(N,) object array of labels as text, or (N,) float64."""
    digest: str
    """sha256 over the content of the source."""
    arrays: np.ndarray | None = None
    """(N, C, H, W) float32 for images, (N, …) float32 for arrays, None for tables."""
    white: float | None = None
    """Images: the value that a pixel of 255 of an image file has in `arrays`; None where a file has no meaning."""
    table: Table | None = None
    """Feature columns, for tables."""
    rules: TableRules | None = None
    """How a table was read."""
    words: Texts | None = None
    """The target of a table as its words."""
    fixed: np.ndarray | None = None
    """(N,) int8 index into SPLITS where the source itself says the split, else FREE; None: all are free."""
    keys: np.ndarray | None = None
    """(N,) uint64 hash of each row's content: equal rows have equal keys."""
    times: np.ndarray | None = None
    """(N,) float64 to order rows by, where data.split.time asks for it."""
    missing_targets: dict[str, int] = field(default_factory=dict)
    """Texts of the target that are read as missing, without the empty one, and the rows of each."""
    notes: tuple[str, ...] = field(default_factory=tuple)
    """What was inferred or dropped, as sentences for the event stream."""

    def __len__(self) -> int:
        return len(self.targets)

    @property
    def item_shape(self) -> tuple[int, ...]:
        """Shape of one row, where known before preparing."""
        return () if self.arrays is None else tuple(self.arrays.shape[1:])
