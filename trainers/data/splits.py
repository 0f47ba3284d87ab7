"""Divide rows into train, validation, calibration, gate and test.

Invariant: a row's place follows from its content, the seed and the shares, never from where it stands in the file;
rows of equal content (or of one group) are always in the same split; counts are exact where no group is in the way.

Covered: counts and fractions, stratified, grouped, duplicates, splits that the source gives.
Not covered: what rows are worth training on (quality/report.py).
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from cluster.errors import DataError
from cluster.spec.data import SPLITS, SplitSpec
from cluster.spec.rules import by_hash_rule
from trainers.data.hashing import seeded
from trainers.data.read.raw import FREE

ATTEMPTED = "Cannot split the data"


def split_counts(spec: SplitSpec, num_rows: int, *, given: Mapping[str, int] | None = None) -> dict[str, int]:
    """Rows of each split, summing to `num_rows`. Splits in `given` were fixed by the source and take no share.

    Raises DataError when the shares do not fit.
    """
    fixed = {name for name, rows in (given or {}).items() if rows}
    counts: dict[str, int] = {}
    for name in SPLITS[1:]:
        counts[name] = 0 if name in fixed else _rows(getattr(spec, name), num_rows)
    rest = num_rows - sum(counts.values())
    train = rest if spec.train == "rest" or "train" in fixed else _rows(spec.train, num_rows)
    if rest < train or (train <= 0 and "train" not in fixed):
        raise DataError(
            ATTEMPTED,
            found=f"{num_rows} rows are there; the other splits take {num_rows - rest} and train would get {rest}"
            + (f", {train} are asked for" if train > rest else ""),
            rule="the shares of data.split may not add up to more than all rows, and train needs at least one",
            remedy="Lower the shares in data.split, or give more rows.",
        )
    return {"train": train, **counts}


def assign_splits(
    spec: SplitSpec,
    keys: np.ndarray,
    labels: np.ndarray | None,
    *,
    fixed: np.ndarray | None = None,
    times: np.ndarray | None = None,
) -> np.ndarray:
    """(N,) int8: index into SPLITS of each row, or FREE for a row that no split takes (shares below all rows).

    Args:
        keys: (N,) uint64; rows with equal keys stay together.
        labels: (N,) int64 class indices to stratify by, or None.
        fixed: (N,) int8 splits that the source gives, FREE where it gives none.
        times: (N,) float64 to order by; the oldest rows go to train.
    """
    result = np.full(len(keys), FREE, dtype=np.int8) if fixed is None else fixed.astype(np.int8).copy()
    if spec.column is not None:
        return result
    free = np.flatnonzero(result == FREE)
    given = {name: int((result == index).sum()) for index, name in enumerate(SPLITS)}
    counts = split_counts(spec, len(free), given=given)
    if len(free) == 0:
        return result
    if spec.by_hash:
        result[free] = _by_hash(spec, keys[free], given)
        return result
    if times is not None:
        result[free] = _by_time(counts, times[free], keys[free])
        return result
    strata = np.zeros(len(free), dtype=np.int64) if labels is None or not spec.stratify else labels[free]
    order = np.argsort(seeded(keys[free], spec.seed), kind="stable")
    units = _units(keys[free][order], strata[order])
    quota = _quota(counts, strata)
    result[free[order]] = _fill(units, strata[order], quota)
    return result


def _by_hash(spec: SplitSpec, keys: np.ndarray, given: Mapping[str, int]) -> np.ndarray:
    """Each row's place in [0, 1) by its own key; the shares cut it into splits, train last."""
    shares = [0.0 if given[name] else float(getattr(spec, name)) for name in SPLITS[1:]]
    if rule := by_hash_rule(spec, [name for name, rows in given.items() if rows]):
        raise DataError(
            ATTEMPTED,
            found="data.split.by_hash is set and a share is a number of rows, or train is not rest",
            rule=rule,
            remedy="Write fractions, and leave data.split.train: rest.",
        )
    places = seeded(keys, spec.seed).astype(np.float64) / 2.0**64
    found = np.searchsorted(np.cumsum(shares), places, side="right") + 1
    return np.where(found > len(shares), 0, found).astype(np.int8)


def _by_time(counts: Mapping[str, int], times: np.ndarray, keys: np.ndarray) -> np.ndarray:
    """The oldest rows to train, then the others in their order. Rows of one moment stay together."""
    order = np.lexsort((keys, times))
    result = np.full(len(times), FREE, dtype=np.int8)
    bounds = np.cumsum([counts[name] for name in SPLITS])
    ordered = times[order]
    start = 0
    for index, bound in enumerate(bounds):
        end = int(bound)
        while 0 < end < len(ordered) and ordered[end] == ordered[end - 1] and end > start:
            end += 1
        result[order[start:end]] = index
        start = max(start, end)
    return result


def _rows(share: float | int, num_rows: int) -> int:
    """A share as a number of rows: an integer above 1 is a number, all else a fraction."""
    return int(share) if share > 1 else round(share * num_rows)


def _units(keys: np.ndarray, strata: np.ndarray) -> np.ndarray:
    """(N,) int64: a number for each set of rows that must stay together, in the order of first appearance."""
    _, first, inverse = np.unique(keys, return_index=True, return_inverse=True)
    return first[inverse]


def _quota(counts: Mapping[str, int], strata: np.ndarray) -> np.ndarray:
    """(S, C) rows of each split and stratum: exact in both sums when all rows are used (largest remainders)."""
    left = np.bincount(strata).astype(np.int64)
    quota = np.zeros((len(SPLITS), len(left)), dtype=np.int64)
    pool = int(left.sum())
    for index in sorted(range(len(SPLITS)), key=lambda i: (i == 0, i)):
        rows = counts[SPLITS[index]]
        exact = left * (rows / max(pool, 1))
        take = np.minimum(np.floor(exact).astype(np.int64), left)
        missing = rows - int(take.sum())
        order = np.argsort(-(exact - take), kind="stable")
        spare = [stratum for stratum in order if take[stratum] < left[stratum]]
        for stratum in spare[:missing]:
            take[stratum] += 1
        quota[index] = take
        left = left - take
        pool -= rows
    return quota


def _fill(units: np.ndarray, strata: np.ndarray, quota: np.ndarray) -> np.ndarray:
    """Give each row of a stratum to the splits in turn; sets of several rows first, each to the emptiest split."""
    result = np.full(len(units), FREE, dtype=np.int8)
    left = quota.copy()
    sizes = np.bincount(units, minlength=len(units))
    together = np.flatnonzero(sizes[units] > 1)
    members = together[np.argsort(units[together], kind="stable")]
    starts = np.flatnonzero(np.diff(units[members], prepend=-1))
    groups = np.split(members, starts[1:]) if len(members) else []
    for rows in sorted(groups, key=len, reverse=True):
        needs = np.bincount(strata[rows], minlength=quota.shape[1])
        result[rows] = chosen = _emptiest(left, quota, needs)
        left[chosen] -= needs
    for stratum in range(quota.shape[1]):
        alone = np.flatnonzero((strata == stratum) & (sizes[units] == 1))
        room = np.maximum(left[:, stratum], 0)
        labels = np.repeat(np.arange(len(SPLITS), dtype=np.int8), room)[: len(alone)]
        result[alone[: len(labels)]] = labels
    return result


def _emptiest(left: np.ndarray, quota: np.ndarray, needs: np.ndarray) -> int:
    """The split that has room for these rows and is least full; the one with most room when none has."""
    wanted = needs > 0
    room = (left - needs)[:, wanted].min(axis=1)
    share = left[:, wanted].sum(axis=1) / np.maximum(quota[:, wanted].sum(axis=1), 1)
    fits = room >= 0
    return int(np.argmax(np.where(fits, share, -np.inf))) if fits.any() else int(np.argmax(left[:, wanted].sum(axis=1)))


def split_rows(assigned: np.ndarray) -> dict[str, np.ndarray]:
    """Row indices of each split that has rows, ascending."""
    found = {name: np.flatnonzero(assigned == index) for index, name in enumerate(SPLITS)}
    return {name: rows for name, rows in found.items() if len(rows)}
