"""How many different hashes were seen, in bounded memory (Bar-Yossef et al. 2002).

Invariant: `merge` of two sketches is the sketch of both streams; the count is exact until there are more different
hashes than the sketch holds.
"""

from __future__ import annotations

import math

import numpy as np

COLUMN_HASHES = 1 << 14
ROW_HASHES = 1 << 23  # 64 MiB


class DistinctSketch:
    """The `size` smallest different hashes."""

    def __init__(self, size: int | None, ceiling: np.uint64 | None = None) -> None:
        """`size`: None keeps all. `ceiling`: the largest hash of a full sketch that this one will be merged into."""
        self.size = size
        self.ceiling = ceiling
        self.smallest = np.zeros(0, dtype=np.uint64)
        self.full = False
        self._waiting: list[np.ndarray] = []
        self._num_waiting = 0

    @property
    def limit(self) -> np.uint64 | None:
        """Hashes from this one on change nothing."""
        return self.smallest[-1] if self.full else self.ceiling

    @property
    def relative_error(self) -> float:
        """Three standard errors; 0 while the count is exact."""
        self._settle()
        return 3 / math.sqrt(self.size - 2) if self.full and self.size else 0.0

    def add(self, hashes: np.ndarray) -> None:
        """Take in hashes; sorting waits until there are as many new ones as the sketch holds."""
        if (limit := self.limit) is not None:
            hashes = hashes[hashes < limit]
        if len(hashes):
            self._waiting.append(hashes)
            self._num_waiting += len(hashes)
        if self.size is not None and self._num_waiting > self.size:
            self._settle()

    def merge(self, other: DistinctSketch) -> None:
        for hashes in (other.smallest, *other._waiting):
            self.add(hashes)
        if other.full and not self.full:
            self._settle()  # the other one alone fills the sketch
            self.full = True

    def count(self) -> int:
        self._settle()
        if not self.full or self.size is None:
            return len(self.smallest)
        return round((self.size - 1) * 2.0**64 / float(self.smallest[-1]))

    def _settle(self) -> None:
        if self._waiting:
            merged = np.sort(np.concatenate([self.smallest, *self._waiting]))  # np.unique hashes: five times slower
            merged = merged[np.append(True, merged[1:] != merged[:-1])]
            self.full = self.full or (self.size is not None and len(merged) > self.size)
            self.smallest = merged[: self.size]
            self._waiting, self._num_waiting = [], 0
