"""Which rows make up which update, and which of them a worker reads: pure functions.

    order(seed, epoch)                the permutation of all rows
    window w of the epoch             order[w·B : (w+1)·B], the last one may be shorter
    rank r's part of the window       a contiguous, balanced slice; its micro-batches are slices of that

Invariant: order and windows depend on (seed, epoch, position) and on the global batch alone. Workers only decide
who reads what, so that each row occurs exactly once an epoch with any number of workers, and a resume needs no state
but two integers.

Covered: shuffled epochs, uneven parts (a rank may have no row). Not covered: streams without an index.
"""

from __future__ import annotations

import itertools
from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class World:
    """This worker's place among all workers."""

    rank: int = 0
    size: int = 1


@dataclass(frozen=True)
class Window:
    """The rows of one update."""

    epoch: int
    index: int
    """Position in the epoch, from 0."""
    rows: np.ndarray
    """(B,) int64 row numbers of the whole global batch, the same on every worker."""
    start: int
    """This rank's part is rows[start:stop]."""
    stop: int

    @property
    def own(self) -> np.ndarray:
        """Rows of this rank."""
        return self.rows[self.start : self.stop]

    def micro_slices(self, size: int) -> list[slice]:
        """Positions in the window of this rank's micro-batches: as few as `size` allows, of balanced sizes, so that
        no tail of one row is left over (batch norm cannot train on one)."""
        rows = self.stop - self.start
        count = -(-rows // size)
        bounds = [self.start + rows * index // count for index in range(count + 1)] if count else []
        return [slice(a, b) for a, b in itertools.pairwise(bounds)]


def epoch_order(seed: int, epoch: int, num_rows: int) -> np.ndarray:
    """(num_rows,) int64 permutation."""
    return np.random.default_rng([seed, epoch]).permutation(num_rows)


def num_windows(num_rows: int, batch_size_global: int) -> int:
    """Windows of an epoch."""
    return -(-num_rows // batch_size_global)


def window_of(order: np.ndarray, epoch: int, index: int, batch_size_global: int, world: World) -> Window:
    """Window `index` of the epoch whose permutation is `order`."""
    rows = order[index * batch_size_global : (index + 1) * batch_size_global]
    start, stop = part(len(rows), world)
    return Window(epoch, index, rows, start, stop)


def part(length: int, world: World) -> tuple[int, int]:
    """Bounds of a rank's balanced, contiguous slice; the first ranks get the longer ones.

    Where there are less than two rows for each, the last ranks get none rather than one (batch norm again).
    """
    size = min(world.size, max(1, length // 2))
    if world.rank >= size:
        return length, length
    base, extra = divmod(length, size)
    start = world.rank * base + min(world.rank, extra)
    return start, start + base + (world.rank < extra)
