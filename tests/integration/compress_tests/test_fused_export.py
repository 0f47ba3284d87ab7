"""A run with export.fuse: every variant of its bundle answers raw rows, and serving applies nothing twice."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from cluster.atomic import write_json
from cluster.bundle.files import TRANSFORMS, open_bundle
from cluster.bundle.independence import allowed_changes, measure_independence
from cluster.bundle.transforms import ArrayTransforms, Standardize, load_transforms
from cluster.errors import BundleError
from serve.config import EndpointConfig, VersionConfig
from serve.deployments.stages import read_test_rows
from serve.models.loading import load_engine
from tests.integration.compress_tests.test_stages import run_until_export
from trainers.compress.command import open_source
from trainers.data.shards import open_prepared

FITTED = ArrayTransforms(
    name="image",
    item_shape=(1, 8, 8),
    steps=(Standardize(shape=(1, 1, 1), mean=(3.0,), deviation=(16.0,)),),
)
"""As if the digits had been standardized by these two numbers: raw = prepared × 16 + 3."""


@pytest.fixture
def with_transforms(make_context: Any, trained_stages: Path, tmp_path: Path) -> Any:
    prepare = tmp_path / "run" / "stages" / "prepare"
    prepare.unlink()
    shutil.copytree(trained_stages / "prepare", prepare)
    write_json(prepare / TRANSFORMS, FITTED.to_json())
    return make_context


def test_a_fused_bundle_takes_raw_rows_and_is_served_without_doing_it_twice(with_transforms: Any) -> None:
    context, records = run_until_export(
        with_transforms, compress=None, export={"fuse": ("normalize", "softmax", "labels")}
    )
    bundle = open_bundle(context.run.bundle)
    assert [output.name for output in bundle.manifest.signature.outputs] == ["logits", "probabilities", "label"]
    prepared = open_prepared(context.files("prepare")).splits["test"]
    raw = np.array(prepared.inputs["image"]) * 16 + 3
    inputs, targets = read_test_rows(context.files("prepare"), bundle)
    np.testing.assert_allclose(inputs["image"], raw, rtol=1e-5, atol=1e-5)

    transforms = load_transforms(bundle.transforms() or {})
    rows = transforms.apply_rows([{"image": row.tolist()} for row in raw[:8]])
    np.testing.assert_array_equal(rows["image"], raw[:8].astype(np.float32))
    for variant in bundle.manifest.variants:
        version = VersionConfig(version="1", bundle=str(context.run.bundle), variant=variant.name)
        config = EndpointConfig(name="digits", versions=(version,), default_version="1")
        loaded = load_engine(config, version)  # compares the sample, texts included
        raw_rows = {"image": inputs["image"].astype(np.float32)}
        answer = loaded.engine.run(raw_rows)
        alone = measure_independence(loaded.engine.run, raw_rows, allowed_changes(answer))
        assert alone.independent, alone.sentence()  # labels and probabilities too
        loaded.engine.close()
        accuracy = float((answer["logits"].argmax(1) == targets).mean())
        assert accuracy == pytest.approx(records["evaluate"].facts["metrics"]["accuracy"], abs=0.02)
        assert [label.decode() for label in answer["label"]] == [str(i) for i in answer["logits"].argmax(1)]
        np.testing.assert_allclose(answer["probabilities"].sum(1), 1.0, rtol=1e-5)
    with pytest.raises(BundleError, match=r"holds normalize, softmax, labels \(export\.fuse\)"):
        open_source(context.run.bundle)


def test_a_run_for_tensorrt_exports_on_a_host_without_one_and_says_what_it_did_not_measure(make_context: Any) -> None:
    context, _ = run_until_export(make_context, compress=None, serve={"device": "cuda", "engine": "tensorrt"})
    bundle = open_bundle(context.run.bundle)
    evidence = json.loads(bundle.path("evidence/tensorrt.json").read_text(encoding="utf-8"))
    if evidence["built"]:
        assert bundle.manifest.variant().footprint_bytes == evidence["footprint_bytes"] > 0
    else:
        assert bundle.manifest.variant().footprint_bytes is None
        assert "TensorRT" in evidence["why"] or "CUDA" in evidence["why"]
