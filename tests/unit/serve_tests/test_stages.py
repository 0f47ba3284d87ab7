"""The predict stage's comparison with labels and with the evaluated model."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np

from cluster.bundle import open_bundle
from serve.deployments.stages import compare
from tests.bundles import make_bundle


def test_the_comparison_counts_labels_and_agreement(tmp_path: Path) -> None:
    bundle = open_bundle(make_bundle(tmp_path / "c"))
    outputs = np.eye(10, dtype=np.float32)[[0, 1, 2, 3]]
    found = compare(bundle, outputs, np.array([0, 1, 2, 9]), np.eye(10)[[0, 1, 5, 3]])
    assert found == {"accuracy": 0.75, "agreement": 0.75}
    values = open_bundle(make_bundle(tmp_path / "r", task="regression", num_outputs=1))
    found = compare(values, np.array([[1.0], [2.0]]), np.array([1.0, 4.0]), np.array([[1.0], [3.0]]))
    assert found == {"mean_absolute_error": 1.0, "agreement": 0.5}
    student = values.manifest.variant().model_copy(update={"recipe": "distill"})
    accepted = replace(values, manifest=values.manifest.model_copy(update={"variants": (student,)}))
    targets, evaluated = np.array([100.0, 220.0]), np.array([[110.0], [210.0]])
    assert compare(accepted, np.array([[105.0], [215.0]]), targets, evaluated)["agreement"] == 1.0, "off by no more"
    assert compare(accepted, np.array([[0.1], [0.2]]), targets, evaluated)["agreement"] == 0.0, "of another unit"
