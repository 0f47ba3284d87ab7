"""Transforms of images and arrays: scikit-learn's arithmetic, the shape rules of a row, and the form on disk."""

from __future__ import annotations

import copy
import json
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.preprocessing import StandardScaler

from cluster.bundle.transforms import ArrayTransforms, Pixels, load_transforms
from cluster.errors import BundleError, DataError
from trainers.data.fit.arrays import fit_standardize

RNG = np.random.default_rng(1)
TRAIN = RNG.gamma(2.0, 50.0, (40, 3, 4, 5)).astype(np.float32)
PIXELS = Pixels(channels=3, height=4, width=5, white=255.0)


def image_transforms() -> ArrayTransforms:
    step = fit_standardize(TRAIN, by_channel=True)
    made = ArrayTransforms(name="image", item_shape=(3, 4, 5), steps=(step,), pixels=PIXELS)
    loaded = load_transforms(json.loads(json.dumps(made.to_json())))
    assert loaded == made
    assert isinstance(loaded, ArrayTransforms)
    return loaded


@settings(max_examples=40, deadline=None, derandomize=True, database=None)
@given(st.lists(st.lists(st.floats(-1e6, 1e6, width=32), min_size=60, max_size=60), min_size=1, max_size=3))
def test_images_equal_scikit_learns_scaler_on_their_channels(rows: list[list[float]]) -> None:
    raw = np.array(rows, dtype=np.float32).reshape(-1, 3, 4, 5)
    oracle = StandardScaler().fit(np.moveaxis(TRAIN, 1, -1).reshape(-1, 3).astype(np.float64))
    expected = np.moveaxis(oracle.transform(np.moveaxis(raw, 1, -1).reshape(-1, 3)).reshape(-1, 4, 5, 3), -1, 1)
    found = image_transforms().apply_rows(raw.tolist())["image"]
    assert found.dtype == np.float32
    np.testing.assert_allclose(found, expected, rtol=1e-6, atol=1e-6)


def test_arrays_equal_scikit_learns_scaler_and_a_constant_feature_stays_finite() -> None:
    train = RNG.normal(5, 3, (50, 6))
    train[:, 2] = 7.0
    made = ArrayTransforms(name="x", item_shape=(6,), steps=(fit_standardize(train, by_channel=False),))
    found = made.apply(train.astype(np.float32))["x"]
    np.testing.assert_allclose(found, StandardScaler().fit_transform(train), rtol=1e-4, atol=1e-5)


def test_each_row_is_transformed_on_its_own_and_undo_gives_it_back() -> None:
    made = image_transforms()
    together = made.apply(TRAIN)["image"]
    for index in (0, 17):
        assert np.array_equal(made.apply(TRAIN[index : index + 1])["image"][0], together[index])
    np.testing.assert_allclose(made.undo({"image": together})["image"], TRAIN, rtol=1e-4, atol=1e-3)


def test_pixels_become_raw_values_by_channel() -> None:
    image = RNG.integers(0, 256, (4, 5, 3)).astype(np.uint8)
    raw = PIXELS.raw(image)
    assert (raw.shape, raw.dtype) == ((3, 4, 5), np.float32)
    assert np.array_equal(raw, np.moveaxis(image, -1, 0))
    gray = Pixels(channels=1, height=2, width=2, white=16.0)
    assert gray.raw(np.array([[0, 255], [51, 0]], np.uint8)).tolist() == [[[0.0, 16.0], [pytest.approx(3.2), 0.0]]]
    for wrong in (image[:3], image.astype(np.float32), image[..., 0]):
        with pytest.raises(DataError, match="the model takes"):
            PIXELS.raw(wrong)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"format": "manta.pickle"}, "format 'manta.pickle'"),
        ({"format_version": 2}, "version 2"),
        ({"steps": [{"op": "eval", "code": "1"}]}, "steps.0"),
        ({"steps": []}, "steps"),
        ({"item_shape": [2, 4, 5]}, "do not fit rows of shape"),
        ({"pixels": {**PIXELS.model_dump(), "height": 9}}, "the pixels do not fit"),
        ({"pixels": {**PIXELS.model_dump(), "interpolation": "magic"}}, "pixels.interpolation"),
        ({"extra": 1}, "extra"),
    ],
)
def test_a_foreign_form_is_refused(change: dict[str, Any], words: str) -> None:
    raw = copy.deepcopy(image_transforms().to_json()) | change
    with pytest.raises(BundleError) as caught:
        load_transforms(raw)
    assert words in caught.value.message


@pytest.mark.parametrize("broken", [{"mean": [0.0]}, {"deviation": [1.0, 0.0, 1.0]}, {"shape": [3]}])
def test_a_step_that_does_not_fit_itself_is_refused(broken: dict[str, Any]) -> None:
    raw = image_transforms().to_json()
    raw["steps"] = [{**raw["steps"][0], **broken}]
    with pytest.raises(BundleError, match=r"steps|do not fit"):
        load_transforms(raw)
