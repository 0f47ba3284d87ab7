"""A table, and a test table beside it, with every kind of finding of the quality report, each in a known column.

Wrong labels show where no column gives the label away: in the same table without `leak`.
"""

from __future__ import annotations

import gzip
import json
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.csv as pa_csv
import pyarrow.parquet as pq

PLANTED = {
    ("class_balance", "y"), ("codes", "zip"), ("codes", "account"), ("constant", "same"), ("date_like", "day"),
    ("date_like", "seen_at"), ("drift", "moved"), ("drift", "mood"), ("drift", "running"), ("drift", "seen_at"),
    ("duplicate_rows", ""), ("hidden_missing", "income"), ("identifier", "id"), ("identifier", "running"),
    ("infinite", "ratio"), ("label_variants", "city"), ("label_variants", "y"),
    ("leakage", "leak"), ("missing", "holes"), ("mixed_types", "mixed"), ("near_duplicate", "twice"),
    ("outliers", ""), ("overlap", ""), ("units", "weight"), ("white_space", ""),
}  # fmt: skip


def tables(rows: int = 12_000) -> tuple[pa.Table, pa.Table]:
    """The training table and the test table."""
    train = pa.table(_columns(rows, np.random.default_rng(0)))
    train = pa.concat_tables([train.slice(0, rows - 20), train.slice(0, 20)])
    test = _columns(rows // 4, np.random.default_rng(1))
    test["moved"] = np.asarray(test["moved"]) + 0.9
    test["mood"] = np.where(np.arange(rows // 4) % 10 == 0, "good", "bad")
    test["y"] = np.array([f"{word}." for word in test["y"]])
    shared = train.slice(100, 30).set_column(
        train.column_names.index("y"), "y", pa.array(["no."] * 30)
    )  # the features of training rows
    return train, pa.concat_tables([pa.table(test), shared])


def _columns(rows: int, rng: np.random.Generator) -> dict[str, object]:
    number = np.arange(rows)
    strong = rng.uniform(size=rows)
    y = np.where(strong > 0.98, "yes", "no")
    flipped = rng.random(rows) < 0.02
    y = np.where(flipped, "yes", y)
    income = rng.uniform(10, 90, rows).round(3)
    income[number % 97 == 5] = -999.0
    ratio = rng.uniform(1, 2, rows).round(4)
    ratio[number % 4001 == 7] = np.inf
    twin = rng.uniform(size=rows).round(6)
    return {
        "strong": strong.round(6),
        "income": income,
        "ratio": ratio,
        "twin": twin,
        "twice": (twin * 2 + 1).round(6),
        "heavy": rng.standard_cauchy(rows).round(4),
        "moved": rng.uniform(size=rows).round(6),
        "running": 1_000 + number,
        "same": np.full(rows, "x"),
        "holes": np.where(rng.random(rows) < 0.6, "?", rng.choice(["u", "v"], rows)),
        "mixed": rng.choice(["7", "12", "seven"], rows),
        "city": rng.choice(["Paris", "paris.", "Rome"], rows),
        "padded": rng.choice([" a", "b", "c "], rows),
        "mood": rng.choice(["good", "bad"], rows),
        "id": np.array([f"id{row:06d}" for row in rng.permutation(rows)]),
        "day": np.array([f"{1 + day % 28:02}/{1 + day % 12:02}/2026" for day in rng.integers(0, 300, rows)]),
        "zip": np.array([f"{code:05}" for code in rng.integers(0, 700, rows)]),
        "account": 4_000_000_000_000_000_000 + rng.integers(0, 500, rows),
        "weight": np.array([f"{value} kg" for value in rng.uniform(50, 99, rows).round(3)]),
        "seen_at": 1_700_000_000 + 7 * rng.permutation(rows),
        "leak": np.where(y == "yes", "granted", "refused"),
        "y": y,
    }


def write(folder: Path, kind: str) -> tuple[str, str]:
    """Both tables as files of one kind: parquet, csv, csv.gz or jsonl."""
    paths = []
    for name, table in zip(("train", "test"), tables(), strict=True):
        path = folder / f"{name}.{kind}"
        if kind == "parquet":
            pq.write_table(table, path, row_group_size=2_500)
        elif kind == "jsonl":
            path.write_text("".join(_line(row) for row in table.to_pylist()))
        else:
            text = pa.BufferOutputStream()
            pa_csv.write_csv(table, text)
            data = text.getvalue().to_pybytes()
            path.write_bytes(gzip.compress(data, 1) if kind.endswith("gz") else data)
        paths.append(str(path))
    return paths[0], paths[1]


def _line(row: dict) -> str:
    """JSON has no infinity: the word stands for it."""
    return json.dumps({**row, "ratio": str(row["ratio"])}) + "\n"
