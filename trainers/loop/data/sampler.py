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

from trainers.loop.distributed.world import World


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
    norm_rows: int | None = None
    """Rows that batch norm normalizes together, from the window's start on; None: those of a micro-batch."""

    @property
    def own(self) -> np.ndarray:
        """Rows of this rank."""
        return self.rows[self.start : self.stop]

    def micro_slices(self, size: int) -> list[slice]:
        """Positions in the window of this rank's micro-batches: as few as `size` allows, of balanced sizes, so that
        no tail of one row is left over (batch norm cannot train on one); of whole groups where they fit."""
        if self.norm_rows is None:
            return _cut(self.start, self.stop, size)
        found: list[slice] = []
        for group in self._groups(self.start, self.stop):
            if found and group.stop - found[-1].start <= size:
                found[-1] = slice(found[-1].start, group.stop)
            else:
                found += _cut(group.start, group.stop, size)  # memory for less than a group: it normalizes by less
        return found

    def group_sizes(self, where: slice) -> tuple[int, ...]:
        """Rows of each group of batch norm in a micro-batch."""
        return tuple(group.stop - group.start for group in self._groups(where.start, where.stop))

    def _groups(self, start: int, stop: int) -> list[slice]:
        """The groups between two positions, cut where a position lies inside one."""
        bounds = group_bounds(len(self.rows), self.norm_rows)
        return [slice(max(a, start), min(b, stop)) for a, b in itertools.pairwise(bounds) if b > start and a < stop]


def epoch_order(seed: int, epoch: int, num_rows: int) -> np.ndarray:
    """(num_rows,) int64 permutation."""
    return np.random.default_rng([seed, epoch]).permutation(num_rows)


def window_of(
    order: np.ndarray, epoch: int, index: int, batch_size_global: int, world: World, norm_rows: int | None = None
) -> Window:
    """Window `index` of the epoch whose permutation is `order`; each rank has whole groups of `norm_rows`."""
    rows = order[index * batch_size_global : (index + 1) * batch_size_global]
    if norm_rows is None:
        return Window(epoch, index, rows, *part(len(rows), world))
    bounds = group_bounds(len(rows), norm_rows)
    first, last = (rank * (len(bounds) - 1) // world.size for rank in (world.rank, world.rank + 1))
    return Window(epoch, index, rows, bounds[first], bounds[last], norm_rows)


def group_bounds(length: int, norm_rows: int | None) -> list[int]:
    """Bounds of a window's groups: of `norm_rows` rows or a few more, so that none is left with a tail."""
    count = max(1, length // norm_rows) if norm_rows else 1
    return [length * index // count for index in range(count + 1)]


def _cut(start: int, stop: int, size: int) -> list[slice]:
    """As few pieces as `size` allows, of balanced sizes."""
    rows = stop - start
    count = -(-rows // size)
    bounds = [start + rows * index // count for index in range(count + 1)] if count else []
    return [slice(a, b) for a, b in itertools.pairwise(bounds)]


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
