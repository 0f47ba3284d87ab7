"""What training saw of each column: what is strange to it, who takes true for 1, and bundles that do not know."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import pytest

from cluster.bundle.transforms import Block, Column, Output, Texts, Transforms, load_transforms
from cluster.bundle.transforms import seen as rules
from cluster.bundle.transforms.seen import SeenNumbers, SeenWords, seen_numbers, seen_words
from cluster.bundle.transforms.steps import Impute, OneHot
from cluster.errors import DataError
from cluster.spec.data import DataSpec
from tests.unit.data_tests.making import training
from trainers.data.fit.seen import example_row, seen_columns
from trainers.data.fit.table import fit_transforms
from trainers.data.fit.training_statistics import EXAMPLE_ROWS
from trainers.data.read.raw import TableRules


@pytest.mark.parametrize(
    ("low", "high", "value", "strange"),
    [
        (0.0, 10.0, 15.0, False),
        (0.0, 10.0, 15.1, True),
        (0.0, 10.0, -5.1, True),
        (-3.0, -1.0, -4.0, False),
        (5.0, 5.0, 5.0, False),
        (5.0, 5.0, 5.1, True),
        (0.0, 10.0, np.nan, False),
        (-1e308, 1e308, 1.7e308, False),
    ],
)
def test_far_outside_is_beyond_an_end_by_more_than_half_the_range(
    low: float, high: float, value: float, strange: bool
) -> None:
    found = seen_numbers(low, high)
    assert found is not None
    assert found.strange(np.array([value])).tolist() == [strange]


def test_a_normal_columns_own_kind_is_hardly_ever_far_outside() -> None:
    """The figure of the docstring: about one value in 100,000 with 100 training rows."""
    rng = np.random.default_rng(0)
    found = 0
    for _ in range(200):
        train, new = rng.standard_normal(100), rng.standard_normal(10_000)
        seen = seen_numbers(train.min(), train.max())
        assert seen is not None
        found += int(seen.strange(new).sum())
    assert 10 <= found <= 40  # of two million


def test_words_are_known_or_not_and_a_missing_one_is_neither() -> None:
    seen = SeenWords(words=("a", "b"))
    assert seen.strange(Texts(np.array([0, 1, -1, 2]), ("b", "Q", "q"))).tolist() == [False, True, False, True]
    assert seen.strange(Texts(np.array([-1]), ())).tolist() == [False]


def test_too_many_words_and_no_value_leave_no_facts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rules, "WORDS_MAX", 2)
    assert seen_words(iter("ba")) == SeenWords(words=("a", "b"))
    assert seen_words("abc") is None
    assert seen_numbers(np.inf, -np.inf) is None


COLUMNS = (Column(name="size", kind="number"), Column(name="kind", kind="text"))
BLOCKS = (
    Block(columns=("size",), steps=(Impute(values=(0.0,)),), features=("size",)),
    Block(columns=("kind",), steps=(OneHot(categories=("a",)),), features=("kind=a",)),
)
OLD = Transforms(columns=COLUMNS, outputs=(Output(name="features", blocks=BLOCKS),))


def test_a_bundle_of_before_loads_and_says_nothing() -> None:
    raw = {key: value for key, value in OLD.to_json().items() if key not in ("seen", "example")}
    old = load_transforms(json.loads(json.dumps(raw)))
    assert isinstance(old, Transforms)
    assert (old.seen, old.example) == ({}, {})
    assert old.unseen(old.read_rows([{"size": 1e9, "kind": "Q"}])) == {}


@pytest.mark.parametrize(
    ("low", "high", "takes"), [(0, 1, True), (1, 1, True), (0, 2, False), (0.5, 1, False), (None, None, False)]
)
def test_true_is_1_only_where_training_had_nothing_but_0_and_1(low: Any, high: Any, takes: bool) -> None:
    seen = {} if low is None else {"size": SeenNumbers(low=low, high=high)}
    transforms = load_transforms(OLD.model_copy(update={"seen": seen}).to_json())
    rows = [{"size": 1, "kind": "a"}, {"size": True, "kind": True}]
    if takes:
        assert transforms.apply_rows(rows)["features"].tolist() == [[1, 1], [1, 0]]
    else:
        with pytest.raises(DataError, match="column 'size': row 1 has true"):
            transforms.apply_rows(rows)


def test_the_facts_are_those_of_the_training_rows_and_the_example_is_one_of_them() -> None:
    columns = (*COLUMNS, Column(name="day", kind="date"), Column(name="note", kind="text"))
    values = {
        "size": np.array([np.nan, 3.0, -2.5]),
        "kind": Texts(np.array([0, 1, -1]), ("a", "b")),
        "day": np.array([20000.0, 20001.5, np.nan]),
        "note": Texts(np.array([0, 0, 0]), ("three words here",)),
    }
    roles: Any = {"size": "number", "kind": "category", "day": "date", "note": "text"}
    assert seen_columns(roles, training(values, np.zeros(3))) == {
        "size": SeenNumbers(low=-2.5, high=3.0),
        "kind": SeenWords(words=("a", "b")),
        "day": SeenNumbers(low=20000.0, high=20001.5),
    }
    assert example_row(columns, values) == {
        "size": 3, "kind": "b", "day": "2024-10-05T12:00:00+00:00", "note": "three words here"
    }  # fmt: skip
    assert example_row(columns, {name: column[:0] if isinstance(column, np.ndarray) else Texts(column.codes[:0], ())
                                 for name, column in values.items()}) == {}  # fmt: skip


@pytest.mark.parametrize(
    ("column", "number", "sent"),
    [
        (Column(name="a", kind="date", date="%d/%m/%Y %H:%M"), 20000.75, "04/10/2024 18:00"),
        (Column(name="a", kind="date", date="epoch_ms"), 20000.5, "1728043200000"),
        (Column(name="a", kind="date", date="%m.%Y"), 20000.5, None),
        (Column(name="a", kind="number", unit="%"), 12.5, 12.5),
        (Column(name="a", kind="number", missing=("", "-9")), -9.0, -9),
        (Column(name="a", kind="number", decimal=",", thousands="."), 1350.25, 1350.25),
    ],
)
def test_the_example_is_written_as_its_column_is_read(column: Column, number: float, sent: Any) -> None:
    found = example_row((column,), {"a": np.array([number])})
    assert found == {"a": sent}
    if sent is not None:
        assert np.asarray(column.from_rows([sent])).tolist() == [number]


def test_a_range_is_told_in_the_columns_writing() -> None:
    day = Column(name="day", kind="date", date="%d.%m.%Y")
    block = Block(columns=("day",), steps=(Impute(values=(0.0,)),), features=("day",))
    seen = {"day": SeenNumbers(low=20000.0, high=20010.0), "kind": SeenWords(words=())}
    made = Transforms(columns=(day, COLUMNS[1]), outputs=(Output(name="x", blocks=(block,)),), seen=seen)
    assert made.seen_range("day") == "04.10.2024 to 14.10.2024"
    assert made.seen_range("kind") == made.seen_range("other") == ""


def test_a_category_that_is_not_kept_as_a_feature_is_known_all_the_same() -> None:
    spec = DataSpec.model_validate_json(json.dumps({
        "source": {"kind": "csv", "path": "x.csv"}, "target": "y", "encode": {"max_categories": 2},
    }))  # fmt: skip
    values = {"kind": Texts(np.array([0, 0, 1, 1, 2] * EXAMPLE_ROWS), ("often", "usual", "rare"))}
    rules = TableRules(spec, (COLUMNS[1],), {"kind": "category"}, (), {}, None, ())
    found = training(values, np.arange(5 * EXAMPLE_ROWS) % 2)
    transforms = fit_transforms(rules, found)
    read = transforms.read_rows([{"kind": "rare"}, {"kind": "never"}])
    assert transforms.unseen(read)["kind"].tolist() == [False, True]
