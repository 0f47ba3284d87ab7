"""The three rows of the data benchmark: quality report, prepare, shuffled reads.

    python -m benchmarks.data.run [--cases quality prepare] [--rows 1000000] [--quality-rows 5000000] [--pairs 3]

Pairs alternate; the ratio of medians is what to read. `quality` starts a process for each side and measures its wall
time and peak resident memory from outside (wait4). `prepare` and `read` run in one process: both sides of `prepare`
start from the same typed columns in memory and end with float32 features of all rows on disk.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import joblib
import numpy as np
import pandas as pd
import pyarrow as pa
import sklearn
import torch
from sklearn.compose import ColumnTransformer
from sklearn.impute import SimpleImputer
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import OneHotEncoder, StandardScaler

from benchmarks.data import quality_table
from cluster.bundle.transforms import Texts
from cluster.spec.data import DataSpec
from trainers.data.executors import ONE_PROCESS
from trainers.data.prepare import write
from trainers.data.read.columns import to_numbers, to_texts
from trainers.data.read.infer import infer_column
from trainers.data.read.raw import TableRules, TypedRows
from trainers.data.row_plan import Item, Reader, RowPlan, count_classes
from trainers.data.targets import Target

NUMBERS, CATEGORIES, BATCH = 20, 10, 1024
CASES = ("quality", "prepare")  # prepare also reads what it wrote


def make_frame(rows: int) -> pd.DataFrame:
    rng = np.random.default_rng(7)
    columns: dict[str, np.ndarray] = {}
    for index in range(NUMBERS):
        values = rng.normal(size=rows)
        values[rng.random(rows) < 0.02] = np.nan
        columns[f"n{index}"] = values
    for index in range(CATEGORIES):
        words = np.array([f"word{code}" for code in range(4 + 2 * index)], dtype=object)
        columns[f"c{index}"] = words[rng.integers(0, len(words), rows)]
    return pd.DataFrame(columns)


def prepare_ours(frame: pd.DataFrame, train: np.ndarray, targets: np.ndarray, folder: Path) -> None:
    spec = DataSpec.model_validate_json(
        json.dumps(
            {
                "source": {"kind": "parquet", "path": "x"},
                "encode": {"number": "standard"},
                "clean": {"missing_indicators": False},
            }
        )
    )
    table = pa.Table.from_pandas(frame, preserve_index=False)
    columns, values, roles = [], {}, {}
    for name in table.column_names:
        inferred = infer_column(spec, name, table.column(name))
        column = inferred.column
        columns.append(column)
        roles[name] = inferred.role
        values[name] = (to_texts if column.kind == "text" else to_numbers)(column, table.column(name))
    assert isinstance(values["c0"], Texts)
    rules = TableRules(spec, tuple(columns), roles, ignored=(), lists={}, time=None, notes=())
    splits = np.ones(len(frame), dtype=np.int8)
    splits[train] = 0
    numbers = np.arange(len(frame), dtype=np.uint64)
    target = Target("classification", "", ("0", "1"))
    classes = count_classes(splits, targets, target)
    items = (Item(TypedRows(values, targets, numbers, numbers), splits),)
    write(folder, RowPlan(spec, Reader(target, rules), items, classes.sum(axis=1)[None], classes), ONE_PROCESS)


def prepare_sklearn(frame: pd.DataFrame, train: np.ndarray, targets: np.ndarray, folder: Path) -> None:
    numbers = [name for name in frame if name.startswith("n")]
    words = [name for name in frame if name.startswith("c")]
    transformer = ColumnTransformer(
        [
            ("numbers", make_pipeline(SimpleImputer(strategy="median"), StandardScaler()), numbers),
            ("words", OneHotEncoder(handle_unknown="ignore", sparse_output=False, dtype=np.float32), words),
        ]
    )
    transformer.fit(frame.iloc[train])
    folder.mkdir(parents=True, exist_ok=True)
    joblib.dump((transformer.transform(frame).astype(np.float32), targets), folder / "data.joblib")


def read_ours(folder: Path) -> int:
    from trainers.data.shards import open_prepared

    split = open_prepared(folder).splits["train"]
    order = np.random.default_rng(0).permutation(len(split))
    total = 0
    for start in range(0, len(order), BATCH):
        rows = order[start : start + BATCH]
        batch = torch.from_numpy(split.inputs["features"][rows]), torch.from_numpy(split.targets[rows])
        total += len(batch[0])
    return total


def read_loader(dataset: torch.utils.data.TensorDataset) -> int:
    loader = torch.utils.data.DataLoader(dataset, batch_size=BATCH, shuffle=True)
    return sum(len(batch[0]) for batch in loader)


def alternate(first: Callable[[], object], second: Callable[[], object], pairs: int) -> dict[str, object]:
    times: tuple[list[float], list[float]] = ([], [])
    for _ in range(pairs):
        for place, action in enumerate((first, second)):
            started = time.perf_counter()
            action()
            times[place].append(time.perf_counter() - started)
    ours, theirs = (statistics.median(series) for series in times)
    return {"ours_s": ours, "theirs_s": theirs, "ratio": theirs / ours, "all_s": times}


def measure(command: list[str], folder: Path) -> tuple[float, float, str]:
    """Wall seconds, peak resident MiB and standard output of `python -m COMMAND` in a process of its own."""
    result = folder / "peak.json"
    done = subprocess.run(
        [sys.executable, "-m", "benchmarks.data.peak", str(result), sys.executable, "-m", *command],
        stdout=subprocess.PIPE, text=True, env={**os.environ, "OMP_NUM_THREADS": "1"}, check=False,
    )  # fmt: skip
    if done.returncode not in (0, 2):  # 2: a finding is an error
        raise RuntimeError(f"{command} ended with {done.returncode}")
    peak = json.loads(result.read_text())
    return peak["wall_s"], peak["peak_mib"], done.stdout


def named(finding: dict[str, Any]) -> list[tuple[str, str]]:
    """(rule, column) of a finding; one of several columns counts once for each, as the peer has them."""
    columns = [finding["column"]] if finding["column"] else finding["evidence"].get("columns", [""])
    return [(finding["rule"], column) for column in columns]


def quality(rows: int, pairs: int, folder: Path, made: Path | None) -> dict[str, object]:
    """The report of a Parquet file within 1 GiB, against plain pandas with the same findings."""
    path = made or folder / "quality.parquet"
    if not path.exists():
        measure(["benchmarks.data.quality_table", str(path), "--rows", str(rows)], folder)
    table = [str(path), "--target", quality_table.TARGET]
    commands = (
        ["trainers.data.check", *table, "--json", "--memory-mb", "1024"],
        ["benchmarks.data.quality_pandas", *table],
    )
    runs = [tuple(measure(command, folder) for command in commands) for _ in range(pairs)]
    ours = sorted(pair for item in json.loads(runs[0][0][2])["findings"] for pair in named(item))
    theirs = sorted(map(tuple, json.loads(runs[0][1][2])["findings"]))
    (ours_s, theirs_s), (ours_mib, theirs_mib) = (
        [statistics.median(run[side][what] for run in runs) for side in (0, 1)] for what in (0, 1)
    )
    return {
        "rows": rows, "file_mib": path.stat().st_size / 2**20, "findings": len(ours), "same_findings": ours == theirs,
        "ours_s": ours_s, "theirs_s": theirs_s, "ratio": theirs_s / ours_s,
        "ours_peak_mib": ours_mib, "theirs_peak_mib": theirs_mib, "memory_share": ours_mib / theirs_mib,
        "all": [[list(side[:2]) for side in run] for run in runs],
    }  # fmt: skip


def prepare_and_read(rows: int, pairs: int, folder: Path) -> dict[str, object]:
    frame = make_frame(rows)
    rng = np.random.default_rng(1)
    targets = rng.integers(0, 2, rows)
    train = np.sort(rng.permutation(rows)[: rows * 7 // 10])
    ours, theirs = folder / "ours", folder / "theirs"
    prepare = alternate(
        lambda: prepare_ours(frame, train, targets, ours),
        lambda: prepare_sklearn(frame, train, targets, theirs),
        pairs,
    )
    features = np.load(ours / "train" / "inputs.features.npy")
    dataset = torch.utils.data.TensorDataset(torch.from_numpy(features), torch.from_numpy(targets[train]))
    read = alternate(lambda: read_ours(ours), lambda: read_loader(dataset), pairs)
    shape = {"rows": rows, "features": int(features.shape[1])}
    return {"prepare": {**shape, **prepare}, "read": {**shape, **read}}


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--cases", nargs="+", choices=CASES, default=CASES)
    parser.add_argument("--rows", type=int, default=1_000_000)
    parser.add_argument("--quality-rows", type=int, default=5_000_000)
    parser.add_argument("--quality-file", type=Path, help="keep the generated file here, and use it when it is there")
    parser.add_argument("--pairs", type=int, default=3)
    parser.add_argument("--result", type=Path, default=Path(__file__).parent / "result.json")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    result = json.loads(arguments.result.read_text()) if arguments.result.exists() else {}
    with tempfile.TemporaryDirectory() as temporary:
        if "quality" in arguments.cases:
            result["quality"] = quality(
                arguments.quality_rows, arguments.pairs, Path(temporary), arguments.quality_file
            )
        if "prepare" in arguments.cases:
            result |= prepare_and_read(arguments.rows, arguments.pairs, Path(temporary))
    result["versions"] = {
        "python": platform.python_version(), "numpy": np.__version__, "pandas": pd.__version__,
        "pyarrow": pa.__version__, "scikit-learn": sklearn.__version__, "torch": torch.__version__,
        "machine": f"{platform.machine()}, {len(os.sched_getaffinity(0))} cores",
    }  # fmt: skip
    arguments.result.write_text(json.dumps(result, indent=2) + "\n")
    print(json.dumps({key: value for key, value in result.items() if key != "versions"}, indent=2))


if __name__ == "__main__":
    main()
