"""Where rows go: exact counts, content decides, equal rows stay together."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cluster.errors import DataError, SpecError
from cluster.spec.data import SPLITS, SplitSpec
from cluster.spec.load import validate_spec
from trainers.data.hashing import array_keys
from trainers.data.splits import assign_splits, split_rows


def keys_of(num_rows: int, seed: int = 1) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 2**63, num_rows).astype(np.uint64)


def test_counts_are_exact_and_classes_keep_their_share() -> None:
    labels = np.repeat(np.arange(10), 1000)
    spec = SplitSpec(train=6000, validation=500, calibration=500, gate=2000, test=1000)
    rows = split_rows(assign_splits(spec, keys_of(10_000), labels))
    assert {name: len(index) for name, index in rows.items()} == {
        "train": 6000, "validation": 500, "calibration": 500, "gate": 2000, "test": 1000,
    }  # fmt: skip
    assert all(np.ptp(np.bincount(labels[index])) == 0 for index in rows.values())


def test_the_order_of_the_file_has_no_effect_and_the_seed_has() -> None:
    keys, labels = keys_of(500), np.arange(500) % 3
    shuffled = np.random.default_rng(0).permutation(500)
    first = assign_splits(SplitSpec(), keys, labels)
    assert np.array_equal(assign_splits(SplitSpec(), keys[shuffled], labels[shuffled]), first[shuffled])
    assert not np.array_equal(assign_splits(SplitSpec(seed=8), keys, labels), first)


@settings(max_examples=30, deadline=None, derandomize=True, database=None)
@given(st.lists(st.integers(0, 30), min_size=40, max_size=200), st.integers(0, 5))
def test_duplicates_never_straddle_splits_and_no_row_is_lost(content: list[int], seed: int) -> None:
    rows = np.array(content, dtype=np.float32)[:, None]
    keys = array_keys(rows)
    assigned = assign_splits(SplitSpec(seed=seed), keys, np.array(content) % 2)
    assert (assigned >= 0).all()
    assert all(len(set(assigned[keys == key])) == 1 for key in np.unique(keys))


def test_by_hash_adding_rows_moves_no_row() -> None:
    keys = keys_of(3000)
    spec = SplitSpec(by_hash=True, validation=0.2, test=0.2)
    before = assign_splits(spec, keys[:1000], None)
    after = assign_splits(spec, keys, None)
    assert np.array_equal(before, after[:1000])
    assert abs((after == SPLITS.index("test")).mean() - 0.2) < 0.03


def test_time_puts_the_oldest_rows_into_train_and_one_moment_into_one_split() -> None:
    times = np.repeat(np.arange(100.0), 3)
    assigned = assign_splits(SplitSpec(time="t"), keys_of(300), None, times=times)
    assert np.all(np.diff(assigned[np.argsort(times, kind="stable")]) >= 0)
    assert all(len(set(assigned[times == moment])) == 1 for moment in np.unique(times))
    assert (assigned == 0).sum() > 150


def test_a_given_test_split_takes_no_share_of_the_rest() -> None:
    fixed = np.full(120, -1, dtype=np.int8)
    fixed[100:] = SPLITS.index("test")
    spec = SplitSpec(validation=10, calibration=0, gate=0, test=0.5, stratify=False)
    rows = split_rows(assign_splits(spec, keys_of(120), None, fixed=fixed))
    assert {name: len(index) for name, index in rows.items()} == {"train": 90, "validation": 10, "test": 20}
    assert rows["test"].min() == 100


@pytest.mark.parametrize("shares", [{"validation": 0.6, "test": 0.6}, {"train": 95, "test": 20}])
def test_shares_above_all_rows_are_refused(shares: dict) -> None:
    with pytest.raises(DataError, match="may not add up to more than all rows"):
        assign_splits(SplitSpec(**shares), keys_of(100), None)


def test_two_rules_at_once_are_refused_when_the_spec_loads() -> None:
    raw = {"source": {"kind": "sklearn", "dataset": "iris"}, "split": {"group": "a", "time": "b"}}
    with pytest.raises(SpecError, match="group and time exclude each other"):
        validate_spec({"version": 1, "data": raw})
