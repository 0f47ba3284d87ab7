"""The seeded table of the quality benchmark: 30 columns with every kind of fault that the report looks for.

    python -m benchmarks.data.quality_table FILE [--rows 5000000]

Invariant: the same number of rows gives the same values on every machine with the same NumPy; one chunk is in memory.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

CHUNK_ROWS = 250_000
TWINS = 50  # rows at the end of a chunk that repeat its first ones
TARGET = "y"


def chunks(rows: int) -> Iterator[pa.Table]:
    """The table in chunks of `CHUNK_ROWS`."""
    for start in range(0, rows, CHUNK_ROWS):
        yield chunk(np.random.default_rng([7, start]), start, min(CHUNK_ROWS, rows - start))


def chunk(rng: np.random.Generator, start: int, rows: int) -> pa.Table:
    """Rows `start` to `start + rows`."""
    columns: dict[str, pa.Array | np.ndarray] = {}
    numbers = [rng.normal(size=rows) for _ in range(16)]
    numbers[0][rng.random(rows) < 0.02] = np.nan
    numbers[1][rng.random(rows) < 0.6] = np.nan
    numbers[2][rng.random(rows) < 0.01] = -999.0
    numbers[3] = numbers[4] * -2.0 + 1.0
    numbers[5] = rng.standard_cauchy(rows)
    numbers[6][rng.random(rows) < 0.0001] = np.inf
    numbers[7] = np.full(rows, 1.5)
    columns |= {f"n{index}": pa.array(values, from_pandas=True) for index, values in enumerate(numbers)}
    for index, high in enumerate((10, 1_000, 1_000_000)):
        columns[f"i{index}"] = rng.integers(0, high, rows)
    y = np.where(rng.random(rows) < 0.02, "yes", "no")
    columns["c0"] = words(rng, rows, [f"word{code}" for code in range(12)])
    columns["c1"] = words(rng, rows, ["u", "v", "w", "?"])
    columns["c2"] = words(rng, rows, ["Paris", "paris.", "Rome", "Oslo"])
    columns["c3"] = words(rng, rows, ["7", "12", "seven"])
    columns["c4"] = words(rng, rows, [" a", "b", "c "])
    columns["c5"] = words(rng, rows, [f"street {code}" for code in range(900)])
    columns["c6"] = words(rng, rows, [str(code) for code in range(40)])
    columns["id"] = np.array([f"id{row:09d}" for row in range(start, start + rows)])
    columns["day"] = words(rng, rows, [f"{1 + day % 28:02}/{1 + day % 12:02}/20{day % 20:02}" for day in range(400)])
    columns["leak"] = np.where(y == "yes", "granted", "refused")
    columns[TARGET] = y
    table = pa.table(columns)
    return pa.concat_tables([table.slice(0, rows - TWINS), table.slice(0, TWINS)])


def words(rng: np.random.Generator, rows: int, choice: list[str]) -> pa.Array:
    """A random column of these words."""
    return pa.array(choice).take(pa.array(rng.integers(0, len(choice), rows)))


def write(path: Path, rows: int) -> None:
    """Write the table as Parquet, a chunk a row group."""
    writer = None
    for table in chunks(rows):
        writer = writer or pq.ParquetWriter(path, table.schema)
        writer.write_table(table, row_group_size=CHUNK_ROWS)
    assert writer is not None
    writer.close()


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("file", type=Path)
    parser.add_argument("--rows", type=int, default=5_000_000)
    arguments = parser.parse_args()
    write(arguments.file, arguments.rows)
