"""Networks of other libraries train, are rebuilt without a download, and their ONNX files agree with torch.

transformers stands on our own torch; timm and torchvision want a torch of torchvision's own build, 5.5 GB, in an
environment that MANTA_ZOO_PYTHON names (docs/models.md has the commands); without it those tests skip.
"""

from __future__ import annotations

import json
import os
import subprocess
from pathlib import Path
from typing import Any

import pytest

from cluster.bundle.signature import TensorSpec
from cluster.errors import MissingDependencyError, ModelError
from cluster.runtime.extras import MODULES_OF_FAMILY, check_extras
from cluster.spec import parse_spec
from cluster.spec.model import TimmSpec, TransformersSpec
from trainers.models import FAMILIES, build_model

ROOT = Path(__file__).resolve().parents[3]
SMALL = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 32}
BERT = {"family": "transformers", "name": "bert", "vocabulary": 40, "options": SMALL}
DISTILBERT = {
    "family": "transformers",
    "name": "distilbert",
    "vocabulary": 40,
    "options": {"dim": 16, "n_layers": 1, "n_heads": 2, "hidden_dim": 32},
}
IMAGES = [
    ({"family": "timm", "name": "resnet18"}, "gray"),
    ({"family": "timm", "name": "vit_tiny_patch16_224", "options": {"img_size": 32, "depth": 2}}, "rgb"),
    ({"family": "torchvision", "name": "mobilenet_v3_small"}, "gray"),
]


def child(python: Path, model: dict[str, Any], kind: str) -> dict[str, Any]:
    command = [str(python), "-m", "tests.integration.zoo_tests.child", json.dumps(model), kind]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=280)
    assert done.returncode == 0, done.stdout + done.stderr
    return json.loads(done.stdout.strip().splitlines()[-1])


def check(found: dict[str, Any]) -> None:
    assert found.get("updates") == 6, found
    assert found["parameters"] > 1000
    assert found["flops_per_row"] > found["parameters"]
    assert found["max_abs_diff"] < 1e-3


@pytest.fixture(scope="module")
def python() -> Path:
    from tests.extras import python_with

    return python_with("transformers", "transformers==5.23.0")


@pytest.fixture(scope="module")
def zoo_python() -> Path:
    if "MANTA_ZOO_PYTHON" not in os.environ:
        pytest.skip("MANTA_ZOO_PYTHON names no environment with timm and torchvision")
    return Path(os.environ["MANTA_ZOO_PYTHON"])


@pytest.mark.slow
@pytest.mark.parametrize("model", [BERT, DISTILBERT], ids=["bert", "distilbert"])
def test_a_transformers_model_made_anew(python: Path, model: dict[str, Any]) -> None:
    check(child(python, model, "tokens"))


@pytest.mark.slow
def test_a_saved_transformers_model_goes_on_from_its_weights(python: Path) -> None:
    check(child(python, {"family": "transformers", "name": "SAVED", "pretrained": True}, "tokens"))


@pytest.mark.slow
def test_a_name_that_transformers_does_not_know_is_told(python: Path) -> None:
    found = child(python, {**BERT, "name": "no/such/model"}, "tokens")
    assert "Cannot build the transformers network 'no/such/model'" in found["error"]


@pytest.mark.slow
@pytest.mark.parametrize(("model", "kind"), IMAGES, ids=[str(model["name"]) for model, _ in IMAGES])
def test_an_image_network(zoo_python: Path, model: dict[str, Any], kind: str) -> None:
    check(child(zoo_python, model, kind))


@pytest.mark.slow
def test_a_slip_of_the_pen_in_a_networks_name_is_told(zoo_python: Path) -> None:
    found = child(zoo_python, {"family": "timm", "name": "resnet_18"}, "rgb")
    assert "Did you mean" in found["error"]
    assert "resnet18" in found["error"]


def test_a_spec_whose_library_is_missing_fails_at_once_with_the_extras_name() -> None:
    """Our own environment has no timm."""
    data = "version: 1\ndata: {source: {kind: sklearn, dataset: digits}}\n"
    spec = parse_spec(data + "model: {family: timm, name: resnet18}\n")
    with pytest.raises(MissingDependencyError, match=r"manta-ml\[zoo\]"):
        check_extras(spec)
    image = (TensorSpec(name="image", datatype="FP32", shape=(-1, 8, 8)),)
    with pytest.raises(MissingDependencyError, match=r"manta-ml\[zoo\]"):
        build_model(TimmSpec(family="timm", name="resnet18"), image, 2)
    assert set(MODULES_OF_FAMILY) <= set(FAMILIES)


def test_inputs_that_a_library_cannot_take_are_refused_before_it_is_asked() -> None:
    table = (TensorSpec(name="x", datatype="FP32", shape=(-1, 8)),)
    with pytest.raises(ModelError, match="one image input"):
        build_model(TimmSpec(family="timm", name="resnet18"), table, 2)
    with pytest.raises(ModelError, match="one input of token ids"):
        build_model(TransformersSpec(family="transformers", name="bert"), table, 2)
