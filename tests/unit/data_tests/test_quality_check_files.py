"""The streaming engine: exact where it says so, within its bounds elsewhere, and in bounded memory."""

from __future__ import annotations

import gzip
import tracemalloc
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.csv as pa_csv
import pyarrow.parquet as pq
import pytest

from cluster.errors import DataError
from trainers.data import check, sample, sketch
from trainers.data.quality import label_noise
from trainers.data.quality.check_files import check_batches
from trainers.data.quality.report import check_table
from trainers.data.read import batches
from trainers.data.sample import QUANTILE_RANK_ERROR, SAMPLE_ROWS
from trainers.data.sketch import DistinctSketch

ROWS = 90_000


@pytest.fixture(autouse=True)
def small_forest(monkeypatch: pytest.MonkeyPatch) -> None:
    """The forest that judges labels takes most of a report's time; its size is not what is tested here."""
    monkeypatch.setattr(label_noise, "TREES", 10)
    monkeypatch.setattr(label_noise, "ROWS_MAX", 1_000)


def big() -> pa.Table:
    rng = np.random.default_rng(0)
    income = rng.exponential(10, ROWS)
    income[::50] = np.nan
    income[7] = np.inf
    a = rng.normal(size=ROWS)
    table = {
        "income": income,
        "whole": rng.integers(0, 1000, ROWS),
        "spelt": rng.choice(["Paris", "paris.", "Rome"], ROWS),
        "holes": np.where(rng.random(ROWS) < 0.6, "?", rng.choice(["u", "v"], ROWS)),
        "digits": rng.integers(0, 20, ROWS).astype(str),
        "same": np.full(ROWS, "x"),
        "a": a,
        "twice": a * 2,
        "y": np.where(rng.random(ROWS) < 0.02, "yes", "no"),
    }
    whole = pa.table(table)
    return pa.concat_tables([whole, whole.slice(0, 1000)])


def test_both_engines_agree_on_the_same_table_within_the_stated_bounds() -> None:
    table = big()
    exact, streamed = check_table(table, "y"), check_batches(_batches(table), "y")
    assert streamed.rows == exact.rows == ROWS + 1000 > 2 * SAMPLE_ROWS
    assert {(f.rule, f.column, f.severity) for f in streamed.findings} == {
        (f.rule, f.column, f.severity) for f in exact.findings
    }
    repeated = next(f for f in streamed.findings if f.rule == "duplicate_rows")
    assert repeated.text == f"1000 of {ROWS + 1000} rows repeat another row"
    for name, facts in exact.columns.items():
        found = streamed.columns[name]
        same = ["kind", "missing", "missing_share"] + (["min", "max", "infinite"] if "median" in facts else [])
        assert {key: found[key] for key in same} == {key: facts[key] for key in same}
        assert abs(found["different"] - facts["different"]) <= found["bounds"]["different"] * facts["different"]
        if "median" in facts:
            assert found["mean"] == pytest.approx(facts["mean"], rel=1e-9)
            _check_quantiles(np.asarray(table.column(name).cast(pa.float64())), found)


def _check_quantiles(values: np.ndarray, found: dict) -> None:
    values = values[np.isfinite(values)]
    for key, rank in (("q25", 0.25), ("median", 0.5), ("q75", 0.75)):
        low, high = np.mean(values < found[key]), np.mean(values <= found[key])
        assert low - QUANTILE_RANK_ERROR <= rank <= high + QUANTILE_RANK_ERROR


def _batches(table: pa.Table, rows: int = 20_000) -> list[pa.Table]:
    return [table.slice(start, rows) for start in range(0, table.num_rows, rows)]


def test_a_table_within_the_sample_has_the_report_of_memory() -> None:
    table = big().slice(0, 20_000)
    exact, streamed = check_table(table, "y"), check_batches(_batches(table, 3_000), "y")
    key = [(f.rule, f.column, f.text) for f in exact.findings]
    assert sorted(key) == sorted((f.rule, f.column, f.text) for f in streamed.findings)


def test_a_word_late_in_the_file_makes_a_text_column() -> None:
    values = pa.array([str(index) for index in range(5_000)] + ["seven"])
    assert check_batches(_batches(pa.table({"v": values}), 1_000)).columns["v"]["kind"] == "text"


def test_the_sketch_is_exact_below_its_size_and_within_its_error_above() -> None:
    rng = np.random.default_rng(1)
    hashes = rng.integers(0, 2**64, 200_000, dtype=np.uint64)
    small, large = DistinctSketch(4_096), DistinctSketch(4_096)
    small.add(np.repeat(hashes[:3_000], 3))
    assert (small.count(), small.relative_error) == (3_000, 0.0)
    for part in np.array_split(np.tile(hashes, 2), 20):
        large.add(part)
    assert 0 < large.relative_error < 0.05
    assert abs(large.count() - 200_000) <= large.relative_error * 200_000
    assert len(large.smallest) == 4_096


def _write(folder: Path, kind: str) -> str:
    table = big().slice(0, 4_000)  # below the sketches' size all counts are exact
    if kind == "parquet":
        pq.write_table(table, folder / "t.parquet", row_group_size=700)
    elif kind == "parts":
        for part in range(2):
            pq.write_table(table.slice(part * 2_000, 2_000), folder / f"part{part}.parquet")
        return str(folder / "part*.parquet")
    else:
        text = pa.BufferOutputStream()
        pa_csv.write_csv(table, text)
        data = text.getvalue().to_pybytes()
        (folder / f"t.{kind}").write_bytes(gzip.compress(data) if kind.endswith("gz") else data)
    return str(folder / f"t.{kind}")


@pytest.mark.parametrize("kind", ["parquet", "parts", "csv", "csv.gz"])
def test_past_the_budget_the_same_file_is_read_in_one_pass(
    kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = _write(tmp_path, kind)
    monkeypatch.setattr(batches, "BLOCK_BYTES", 1 << 16)
    asked = {"test": None}
    exact = check.make_report(path, "y", memory_bytes=1 << 30, **asked)
    monkeypatch.setattr(check, "read_file", lambda *_: pytest.fail("the whole file was read"))
    streamed = check.make_report(path, "y", memory_bytes=1 << 10, **asked)
    assert sorted((f.rule, f.column, f.text) for f in streamed.findings) == sorted(
        (f.rule, f.column, f.text) for f in exact.findings
    )
    assert {name: facts["different"] for name, facts in streamed.columns.items()} == {
        name: facts["different"] for name, facts in exact.columns.items()
    }
    with pytest.raises(DataError, match="no column 'z'"):
        check.make_report(path, "z", memory_bytes=1 << 10, **asked)


def test_the_stream_refuses_ragged_lines_and_cut_parquet_in_one_sentence(tmp_path: Path) -> None:
    (tmp_path / "t.csv").write_text("a,b\n1,2\n1\n")
    (tmp_path / "t.parquet").write_bytes(b"PAR1 cut short")
    for name, words in (("t.csv", "Expected 2 columns"), ("t.parquet", "as Parquet")):
        with pytest.raises(DataError, match=words):
            check.make_report(str(tmp_path / name), None, test=None, memory_bytes=1)


def test_memory_stays_bounded_while_the_table_grows(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sample, "SAMPLE_ROWS", 1_000)
    monkeypatch.setattr(sketch, "ROW_HASHES", 1_000)

    def peak(num_batches: int) -> int:
        made = (pa.table({"a": np.random.default_rng(i).normal(size=20_000)}) for i in range(num_batches))
        tracemalloc.start()
        before = pa.default_memory_pool().bytes_allocated()
        largest = [0]

        def watched() -> Iterator[pa.Table]:
            for batch in made:
                largest[0] = max(largest[0], pa.default_memory_pool().bytes_allocated() - before)
                yield batch

        check_batches(watched())
        python = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        return python + largest[0]

    peak(2)  # what is imported on the way counts once
    num_batches = 160
    assert peak(num_batches) < 0.4 * num_batches * 20_000 * 8, "of the table's bytes, with three batches in flight"
