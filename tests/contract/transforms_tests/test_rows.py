"""Raw rows: what is accepted, and what is refused in which words."""

from __future__ import annotations

import json
import math

import numpy as np
import pytest

from cluster.bundle.transforms import Block, Column, Output, Transforms, load_transforms
from cluster.bundle.transforms.steps import Impute, OneHot
from cluster.errors import BundleError, DataError

TRANSFORMS = Transforms(
    columns=(
        Column(name="age", kind="number"),
        Column(name="job", kind="text", mapped={"Dr.": "doctor"}),
        Column(name="day", kind="date"),
    ),
    ignored=("income",),
    outputs=(
        Output(
            name="features",
            blocks=(
                Block(columns=("age", "day"), steps=(Impute(values=(40.0, 0.0)),), features=("age", "day")),
                Block(
                    columns=("job",),
                    steps=(OneHot(categories=("doctor", "7"), bucket_unknown=True, bucket_missing=True),),
                    features=("job=doctor", "job=7", "job other", "job is missing"),
                ),
            ),
        ),
    ),
)


def features(**row: object) -> list[float]:
    return TRANSFORMS.apply_rows([row])["features"][0].tolist()


def test_a_row_becomes_the_tensor_of_the_signature() -> None:
    found = TRANSFORMS.apply_rows([{"age": 39, "job": " Dr. ", "day": "1970-01-03", "income": "x"}])
    assert found["features"].dtype == np.float32
    assert found["features"].tolist() == [[39, 2, 1, 0, 0, 0]]
    assert TRANSFORMS.signature()[0].mismatch(found["features"]) is None


def test_missing_unknown_and_numeric_categories_have_their_places() -> None:
    assert features(age=None, job=None, day=None) == [40, 0, 0, 0, 0, 1]
    assert features(age=math.nan, job="", day="") == [40, 0, 0, 0, 0, 1]
    assert features(age="41", job="pilot", day=None) == [41, 0, 0, 0, 1, 0]
    assert features(age=1, job=7.0, day=None) == features(age=1, job="7", day=None) == [1, 0, 0, 1, 0, 0]


def test_a_changed_schema_names_every_column() -> None:
    with pytest.raises(DataError) as caught:
        TRANSFORMS.apply_rows([{"age": 1, "jobb": "x", "day": None}, {"age": 1, "job": "x", "day": None, "zip": 3}])
    message = caught.value.message
    assert "column 'job' is missing in row 0" in message
    assert "column 'jobb' is unknown (did you mean 'job'?)" in message
    assert "'zip' is unknown" in message
    assert caught.value.details == {"missing": ["job"], "unknown": ["jobb", "zip"]}


@pytest.mark.parametrize(
    ("row", "words"),
    [
        ({"age": "old"}, "column 'age': row 0 has 'old'"),
        ({"age": [1]}, "row 0 has [1]"),
        ({"age": math.inf}, "is infinite"),
        ({"job": {"a": 1}}, "row 0 has a dict"),
        ({"day": "yesterday"}, "ISO 8601"),
    ],
)
def test_values_of_another_kind_are_refused_by_name(row: dict, words: str) -> None:
    with pytest.raises(DataError, match=r"Cannot read column") as caught:
        TRANSFORMS.apply_rows([{"age": 1, "job": "x", "day": None, **row}])
    assert words in caught.value.message


def test_json_and_back_is_the_same_and_a_foreign_op_is_refused() -> None:
    raw = json.loads(json.dumps(TRANSFORMS.to_json()))
    assert load_transforms(raw) == TRANSFORMS
    raw["outputs"][0]["blocks"][0]["steps"][0]["op"] = "eval"
    with pytest.raises(BundleError, match="breaks a rule"):
        load_transforms(raw)
    with pytest.raises(BundleError, match="version 2"):
        load_transforms({**TRANSFORMS.to_json(), "format_version": 2})


def test_each_row_is_transformed_on_its_own() -> None:
    rows = [{"age": index, "job": "doctor" if index % 2 else None, "day": None} for index in range(7)]
    together = TRANSFORMS.apply_rows(rows)["features"]
    alone = np.concatenate([TRANSFORMS.apply_rows([row])["features"] for row in rows])
    assert np.array_equal(together, alone)
