"""Target encoding against scikit-learn's TargetEncoder, cross-fitting included; hashing against published CRC-32."""

from __future__ import annotations

import json

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.model_selection import PredefinedSplit
from sklearn.preprocessing import TargetEncoder

from cluster.bundle.transforms import Column, Output, Texts, Transforms
from cluster.bundle.transforms.steps import HashBuckets
from cluster.spec.data import DataSpec
from tests.unit.data_tests.making import training
from trainers.data.fit.categories import category_block
from trainers.data.fit.table import cross_fitted
from trainers.data.fit.training_statistics import FOLDS, Statistics, folds_of, sum_targets

WORDS = ("red", "green", "blue", "dark blue", "rare")
COLUMN = Column(name="color", kind="text")
RNG = np.random.default_rng(5)
TRAIN = [WORDS[index] for index in RNG.choice(len(WORDS), 300, p=(0.4, 0.3, 0.2, 0.08, 0.02))]
TARGETS: dict[str, np.ndarray] = {
    "binary": (RNG.random(300) < 0.3).astype(np.int64),
    "multiclass": RNG.integers(0, 3, 300),
    "continuous": RNG.normal(10, 4, 300).astype(np.float32),
}


def spec_of(smoothing: float) -> DataSpec:
    encode = {"category": "target", "target_smoothing": smoothing}
    return DataSpec.model_validate_json(json.dumps({"source": {"kind": "csv", "path": "x.csv"}, "encode": encode}))


def fitted(spec: DataSpec, kind: str) -> tuple[Transforms, Texts]:
    texts = COLUMN.from_rows(TRAIN)
    assert isinstance(texts, Texts)
    block = category_block(spec, "color", statistics(texts, kind))
    output = Output(name="features", datatype="FP64", blocks=(block,))
    return Transforms(columns=(COLUMN,), outputs=(output,)), texts


def statistics(texts: Texts, kind: str) -> Statistics:
    """Of the training rows, in two parts that are merged."""
    found = Statistics()
    for rows in (np.arange(100), np.arange(100, len(TRAIN))):
        part = training({"color": texts}, TARGETS[kind]).sample.take(rows)
        more = Statistics.of(part)
        more.sums = {"color": sum_targets(part.values["color"], part, num_classes(kind), spec_of(1.0).split.seed)}
        found.merge(more)
    return found


def num_classes(kind: str) -> int:
    return {"binary": 2, "multiclass": 3, "continuous": 0}[kind]


def column(words: list[str]) -> np.ndarray:
    return np.array(words, dtype=object)[:, None]


@pytest.mark.parametrize("smoothing", [1.0, 10.0])
@pytest.mark.parametrize("kind", TARGETS)
def test_served_rows_are_encoded_as_scikit_learn_does_unknown_included(kind: str, smoothing: float) -> None:
    transforms, _ = fitted(spec_of(smoothing), kind)
    oracle = TargetEncoder(target_type=kind, smooth=smoothing).fit(column(TRAIN), TARGETS[kind])
    word = st.one_of(st.sampled_from(WORDS), st.text(min_size=1).filter(lambda text: text.strip() == text))

    @settings(max_examples=40, deadline=None, derandomize=True, database=None)
    @given(st.lists(word, min_size=1, max_size=5))
    def holds(rows: list[str]) -> None:
        found = transforms.apply_rows([{"color": row} for row in rows])["features"]
        np.testing.assert_allclose(found, oracle.transform(column(rows)), rtol=1e-6, atol=1e-6)

    holds()


@pytest.mark.parametrize("kind", TARGETS)
def test_training_rows_are_cross_fitted_as_scikit_learn_does(kind: str) -> None:
    spec = spec_of(10.0)
    transforms, texts = fitted(spec, kind)
    numbers = np.arange(len(TRAIN), dtype=np.uint64)
    crossed = cross_fitted(spec, transforms, statistics(texts, kind))
    found = crossed.apply({"color": texts}, numbers)["features"]
    folds = folds_of(numbers, spec.split.seed)
    assert np.bincount(folds).min() > len(TRAIN) / FOLDS / 2
    oracle = TargetEncoder(target_type=kind, smooth=10.0, cv=PredefinedSplit(folds))
    expected = oracle.fit_transform(column(TRAIN), TARGETS[kind])
    np.testing.assert_allclose(found, expected, rtol=1e-6, atol=1e-6)
    inside = transforms.apply_rows([{"color": word} for word in TRAIN])["features"]
    assert np.abs(found - inside).max() > 1e-3  # fitted on all training rows it would be something else


def test_a_hash_bucket_is_the_published_crc_32_of_the_text() -> None:
    """The check value of CRC-32/ISO-HDLC: 123456789 gives 0xCBF43926."""
    buckets = 1 << 20
    made = COLUMN.from_rows(["123456789", "", "123456789"])
    assert isinstance(made, Texts)
    matrix = HashBuckets(buckets=buckets).apply(made)
    assert matrix.sum(axis=1).tolist() == [1.0, 0.0, 1.0]
    assert matrix[0].argmax() == 0xCBF43926 % buckets


def test_hash_buckets_are_evenly_used_and_do_not_depend_on_the_other_rows() -> None:
    words = [f"user{index}" for index in range(20_000)]
    texts = COLUMN.from_rows(words)
    assert isinstance(texts, Texts)
    step = HashBuckets(buckets=32)
    matrix = step.apply(texts)
    counts = matrix.sum(axis=0)
    # chi-square over 32 buckets: 31 degrees of freedom, 61.1 is passed once in a thousand
    assert float(((counts - 625) ** 2 / 625).sum()) < 61.1
    alone = COLUMN.from_rows(["user777"])
    assert isinstance(alone, Texts)
    assert np.array_equal(step.apply(alone)[0], matrix[777])
