"""The exported transforms and scikit-learn's own agree to 1e-6 on arbitrary rows."""

from __future__ import annotations

import json

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.feature_extraction.text import TfidfVectorizer
from sklearn.impute import KNNImputer, SimpleImputer
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import (
    FunctionTransformer,
    MinMaxScaler,
    OneHotEncoder,
    OrdinalEncoder,
    QuantileTransformer,
    RobustScaler,
    StandardScaler,
)

from cluster.bundle.transforms import Column, Output, Texts, Transforms, load_transforms
from cluster.bundle.transforms.tokens import split_words
from cluster.spec.data import CsvSource, DataSpec
from tests.unit.data_tests.making import training
from trainers.data.fit.categories import category_block
from trainers.data.fit.numbers import number_blocks
from trainers.data.fit.text import text_block, train_vocabulary

RNG = np.random.default_rng(3)
TRAIN = np.column_stack([RNG.normal(40, 12, 200), RNG.exponential(500, 200), RNG.integers(0, 4, 200).astype(float)])
TRAIN[RNG.random(TRAIN.shape) < 0.1] = np.nan
NAMES = ("a", "b", "c")
WORDS = ("red", "green", "blue", "dark blue")
NUMBER = st.one_of(st.none(), st.floats(-1e6, 1e6, allow_nan=False), st.integers(-1000, 1000))
SCALERS = {
    "standard": StandardScaler(),
    "robust": RobustScaler(),
    "min_max": MinMaxScaler(),
    "quantile": QuantileTransformer(n_quantiles=200, random_state=0),
    "none": FunctionTransformer(),
}
IMPUTERS = {
    "median": SimpleImputer(strategy="median"),
    "mean": SimpleImputer(strategy="mean"),
    "mode": SimpleImputer(strategy="most_frequent"),
    "constant": SimpleImputer(strategy="constant", fill_value=0.0),
}


def make_spec(**sections: dict) -> DataSpec:
    return DataSpec.model_validate_json(json.dumps({"source": {"kind": "csv", "path": "x.csv"}, **sections}))


def number_transforms(scale: str, impute: str) -> Transforms:
    spec = make_spec(encode={"number": scale}, clean={"impute": impute, "missing_indicators": False})
    values = {name: TRAIN[:, index] for index, name in enumerate(NAMES)}
    blocks = tuple(number_blocks(spec, NAMES, training(values, np.zeros(len(TRAIN), dtype=np.int64))))
    columns = tuple(Column(name=name, kind="number", missing=("", "?")) for name in NAMES)
    made = Transforms(columns=columns, outputs=(Output(name="features", datatype="FP64", blocks=blocks),))
    return load_transforms(json.loads(json.dumps(made.to_json())))


@pytest.mark.parametrize(
    ("scale", "impute"), [*((scale, "median") for scale in SCALERS), *(("standard", impute) for impute in IMPUTERS)]
)
def test_numbers_equal_scikit_learn(scale: str, impute: str) -> None:
    transforms = number_transforms(scale, impute)
    oracle = make_pipeline(IMPUTERS[impute], SCALERS[scale]).fit(TRAIN)

    @settings(max_examples=25, deadline=None, derandomize=True, database=None)
    @given(st.lists(st.tuples(NUMBER, NUMBER, NUMBER), min_size=1, max_size=6))
    def holds(rows: list[tuple]) -> None:
        found = transforms.apply_rows([dict(zip(NAMES, row, strict=True)) for row in rows])["features"]
        expected = oracle.transform(np.array(rows, dtype=float))
        np.testing.assert_allclose(found, expected, rtol=1e-6, atol=1e-6)

    holds()


def test_neighbors_equal_scikit_learn() -> None:
    """Values without ties: between equally near rows, scikit-learn's own choice follows its rounding."""
    transforms = number_transforms("none", "neighbors")
    oracle = KNNImputer(n_neighbors=5).fit(TRAIN)
    number = st.floats(-50, 2000, allow_nan=False).map(lambda value: round(value, 3) + 0.00012345)

    @settings(max_examples=25, deadline=None, derandomize=True, database=None)
    @given(st.lists(st.tuples(number, st.none() | number, st.none() | number), min_size=1, max_size=6))
    def holds(rows: list[tuple]) -> None:
        found = transforms.apply_rows([dict(zip(NAMES, row, strict=True)) for row in rows])["features"]
        np.testing.assert_allclose(found, oracle.transform(np.array(rows, dtype=float)), rtol=1e-6, atol=1e-6)

    holds()
    assert np.isfinite(transforms.apply_rows([dict.fromkeys(NAMES)])["features"]).all()


@pytest.mark.parametrize("how", ["one_hot", "ordinal"])
def test_categories_equal_scikit_learn_missing_and_unknown_included(how: str) -> None:
    train = [WORDS[index] for index in RNG.integers(0, len(WORDS), 100)]
    texts = Column(name="color", kind="text").from_rows(train)
    assert isinstance(texts, Texts)
    block = category_block(make_spec(encode={"category": how}), "color", training({"color": texts}, np.zeros(100)))
    transforms = Transforms(
        columns=(Column(name="color", kind="text"),),
        outputs=(Output(name="features", datatype="FP64", blocks=(block,)),),
    )
    if how == "one_hot":
        oracle = OneHotEncoder(handle_unknown="ignore", sparse_output=False)
    else:
        oracle = OrdinalEncoder(
            handle_unknown="use_encoded_value", unknown_value=len(WORDS), encoded_missing_value=len(WORDS) + 1
        )
    oracle.fit(np.array(train, dtype=object)[:, None])
    word = st.one_of(st.sampled_from(WORDS), st.text(min_size=1).filter(lambda text: text.strip() == text))

    @settings(max_examples=60, deadline=None, derandomize=True, database=None)
    @given(st.lists(word, min_size=1, max_size=5))
    def holds(rows: list[str]) -> None:
        found = transforms.apply_rows([{"color": row} for row in rows])["features"]
        np.testing.assert_array_equal(found, oracle.transform(np.array(rows, dtype=object)[:, None]))

    holds()
    missing = transforms.apply_rows([{"color": None}])["features"]
    assert missing.tolist() == ([[0.0] * 4] if how == "one_hot" else [[5.0]])


MESSAGES = ("call me now", "win a free prize now!!", "see you at home, love", "FREE entry: txt 80082 to win") * 5


@settings(max_examples=60, deadline=None, derandomize=True, database=None)
@given(st.text(max_size=60))
def test_token_ids_equal_the_tokenizers_library(text: str) -> None:
    from tokenizers import Tokenizer
    from tokenizers.models import WordPiece

    vocabulary = train_vocabulary(MESSAGES, 80)
    oracle = Tokenizer(WordPiece(vocabulary.ids, unk_token="[UNK]", max_input_chars_per_word=100))
    words = split_words(text)
    expected = oracle.encode(words, is_pretokenized=True).ids if words else []
    assert vocabulary.encode(text) == expected


def test_the_same_texts_give_the_same_vocabulary_whenever_and_in_whatever_order_they_come() -> None:
    """The library alone numbers letters in the order of a hash map, which changes from call to call."""
    rng = np.random.default_rng(0)
    texts = [" ".join("".join(rng.choice(list("abcdefgh"), 4)) for _ in range(6)) for _ in range(40)]
    found = {train_vocabulary(order, 60).tokens for order in (texts, texts, texts[::-1], sorted(texts))}
    assert len(found) == 1
    assert len(found.pop()) == 60


def test_word_counts_equal_scikit_learns_tfidf() -> None:
    texts = Column(name="text", kind="text").from_rows(MESSAGES)
    assert isinstance(texts, Texts)
    block = text_block(make_spec(encode={"vocabulary": 80}), "text", texts)
    vocabulary = block.steps[0].vocabulary  # type: ignore[union-attr]
    oracle = TfidfVectorizer(
        analyzer=vocabulary.encode, vocabulary=range(len(vocabulary.tokens)), sublinear_tf=True, lowercase=False
    )
    oracle.fit(MESSAGES)
    transforms = Transforms(
        columns=(Column(name="text", kind="text"),),
        outputs=(Output(name="features", datatype="FP64", blocks=(block,)),),
    )
    rows = ["free prize prize now", "unseen things", "", "Win a FREE entry!"]
    found = transforms.apply_rows([{"text": row} for row in rows])["features"]
    expected = oracle.transform(rows).toarray()
    expected[2] = 0.0
    np.testing.assert_allclose(found, expected, atol=1e-6)


def test_the_default_missing_words_of_csv_reach_the_bundle() -> None:
    assert "?" in CsvSource(kind="csv", path="x").missing
    made = number_transforms("none", "constant")
    assert made.apply_rows([{"a": "?", "b": " 3.5 ", "c": 1}])["features"].tolist() == [[0.0, 3.5, 1.0]]
