"""Cells that are not finite, named by column, row and file: read again once a read has failed.

Invariant: rows are counted from 0 in their file, whatever batch they came in; every column of the batch that has such a
cell is named.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from cluster.bundle.transforms import Column
from cluster.errors import DataError
from trainers.data.sample import FILE_ROWS_BITS

ROWS_SHOWN = 10
COLUMNS_SHOWN = 5


def refuse_infinite(
    columns: Iterable[Column], column_of: Callable[[str], pa.ChunkedArray], numbers: np.ndarray
) -> None:
    """Raise DataError for infinite cells of number columns. `numbers`: (N,) uint64 of the rows, file and row in it."""
    found = {column.name: infinite_rows(column, column_of(column.name)) for column in columns
             if column.kind == "number" and column.infinite == "error"}  # fmt: skip
    found = {name: rows for name, rows in found.items() if len(rows)}
    if found:
        raise DataError(
            "Cannot use the rows",
            found="; ".join(f"column '{name}' is infinite in {named_rows(numbers[rows])}"
                            for name, rows in list(found.items())[:COLUMNS_SHOWN])
            + (f" (and {len(found) - COLUMNS_SHOWN} more columns)" if len(found) > COLUMNS_SHOWN else ""),
            rule="features are finite or missing; rows are counted from 0",
            remedy="Mend these cells, or set data.clean.infinite: missing.",
            details={"rows": {name: numbers[rows][:ROWS_SHOWN].tolist() for name, rows in found.items()}},
        )  # fmt: skip


def infinite_rows(column: Column, values: pa.ChunkedArray) -> np.ndarray:
    """Places of the infinite cells of a number column."""
    if pa.types.is_floating(values.type):
        return np.flatnonzero(np.isinf(pc.fill_null(values.cast(pa.float64()), 0.0).to_numpy()))
    words = values.cast(pa.string()).to_pylist() if not pa.types.is_integer(values.type) else []
    return np.array([row for row, word in enumerate(words) if _is_infinite(column, word)], dtype=np.int64)


def _is_infinite(column: Column, word: str | None) -> bool:
    clean = None if word is None else column.clean_word(word)
    try:
        return clean is not None and bool(np.isinf(column.number_of(clean)))
    except ValueError:
        return False


def named_rows(numbers: np.ndarray) -> str:
    """`row 7`, or `3 rows: 7, 9, 2 of file 1`."""
    files, rows = numbers >> np.uint64(FILE_ROWS_BITS), numbers & np.uint64((1 << FILE_ROWS_BITS) - 1)
    shown = [f"{row:,} of file {file}" if file else f"{row:,}"
             for file, row in zip(files[:ROWS_SHOWN].tolist(), rows[:ROWS_SHOWN].tolist(), strict=True)]  # fmt: skip
    more = ", …" if len(numbers) > ROWS_SHOWN else ""
    return f"row {shown[0]}" if len(numbers) == 1 else f"{len(numbers):,} rows: {', '.join(shown)}{more}"


def check_tensors(
    tensors: Mapping[str, np.ndarray], features: Mapping[str, Sequence[str]], numbers: np.ndarray
) -> None:
    """Raise DataError where an encoded row holds NaN or infinity: a number beyond float32, say, that nothing scales.

    `features`: names of each tensor's last axis, where it has any.
    """
    for name, tensor in tensors.items():
        if tensor.dtype.kind != "f" or np.isfinite(tensor).all():
            continue
        bad = ~np.isfinite(tensor).reshape(len(tensor), -1)
        rows, names = np.flatnonzero(bad.any(axis=1)), features.get(name, ())
        which = (
            [f"'{names[place]}'" for place in np.flatnonzero(bad.any(axis=0)).tolist()]
            if names
            else [f"input '{name}'"]
        )
        raise DataError(
            "Cannot prepare the rows",
            found=f"{', '.join(which[:COLUMNS_SHOWN])} is NaN or infinite once encoded, in {named_rows(numbers[rows])}",
            rule="features are 32-bit floats, finite and up to 3.4e38; rows are counted from 0",
            remedy="Mend these cells, bring the column to another unit, or set data.encode.number: quantile.",
        )
