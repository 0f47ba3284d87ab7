"""The streaming engine: exact where it says so, within its bounds elsewhere, and in bounded memory."""

from __future__ import annotations

import numpy as np
import pyarrow as pa
import pytest

from trainers.data.quality import check_table
from trainers.data.quality_stream import QUANTILE_RANK_ERROR, SAMPLE_ROWS, DistinctSketch, check_stream

ROWS = 90_000


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
    exact, streamed = check_table(table, "y"), check_stream(_batches(table), "y")
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
    exact, streamed = check_table(table, "y"), check_stream(_batches(table, 3_000), "y")
    key = [(f.rule, f.column, f.text) for f in exact.findings]
    assert sorted(key) == sorted((f.rule, f.column, f.text) for f in streamed.findings)


def test_a_word_late_in_the_file_makes_a_text_column() -> None:
    values = pa.array([str(index) for index in range(5_000)] + ["seven"])
    assert check_stream(_batches(pa.table({"v": values}), 1_000)).columns["v"]["kind"] == "text"


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
