"""The request that a run prints: a raw row, as a person has it, where the bundle knows one."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np

from cluster.bundle import open_bundle
from cluster.bundle.transforms import ArrayTransforms, Standardize
from cluster.pipeline.summary import _rounded, infer_request, predict_request
from tests.bundles import make_bundle, with_transforms


def test_an_array_is_asked_with_the_sources_values_and_not_with_standardized_ones(tmp_path: Path) -> None:
    bundle = make_bundle(tmp_path / "bundle", item_shape=(1, 2, 2), num_outputs=3)
    tensors = open_bundle(bundle).sample()["inputs/x"]
    step = Standardize(shape=(1, 1, 1), mean=(7.0,), deviation=(3.0,))
    transforms = ArrayTransforms(name="image", item_shape=(1, 2, 2), steps=(step,))
    found = predict_request(open_bundle(with_transforms(bundle, transforms.to_json())))
    assert found is not None
    (row,) = found["rows"]
    np.testing.assert_allclose(row, tensors[0] * 3 + 7, rtol=1e-5)
    np.testing.assert_allclose(transforms.apply_rows([row])["image"][0], tensors[0], atol=1e-5)
    json.dumps(found)


def test_noise_of_standardizing_there_and_back_is_rounded_off() -> None:
    row = np.array([-9.9496e-08, 16.000002, 4.9999995, -0.0], np.float32)
    assert _rounded(row).tolist() == [0.0, 16.0, 5.0, 0.0]
    assert _rounded(np.array([1.25e-7, 0.0], np.float32)).tolist() == [1.25e-7, 0.0]
    assert _rounded(np.zeros(2, np.float32)).tolist() == [0.0, 0.0]


def test_a_model_that_takes_tensors_is_asked_with_one(tmp_path: Path) -> None:
    bundle = open_bundle(make_bundle(tmp_path / "bundle"))
    assert predict_request(bundle) is None
    assert infer_request(bundle)["inputs"][0]["shape"] == [1, 1, 8, 8]
