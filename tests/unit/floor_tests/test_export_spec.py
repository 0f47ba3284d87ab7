"""What the spec refuses before anything runs, because no graph or engine could have it."""

from __future__ import annotations

from typing import Any

import pytest
from pydantic import ValidationError

from cluster.spec.export import ExportSpec
from cluster.spec.run import RunSpec
from cluster.spec.serve import ServeSpec, TensorRtSpec

TENSORRT = {"device": "cuda", "engine": "tensorrt"}


def run_spec(**sections: Any) -> RunSpec:
    return RunSpec.model_validate(
        {"version": 1, "data": {"source": {"kind": "sklearn", "dataset": "digits"}}, **sections}
    )


@pytest.mark.parametrize(
    ("sections", "told"),
    [
        ({"export": {"fuse": ("labels",)}, "serve": TENSORRT}, "labels, which are strings"),
        ({"export": {"optimize": {"transformer": True}}, "serve": TENSORRT}, "tensorrt knows none of them"),
        ({"serve": {"engine": "tensorrt"}}, "set device to cuda"),
        ({"serve": {**TENSORRT, "tensorrt": {"axes": {"x.1": (9, 4)}}}}, "typical <= longest"),
        ({"export": {"opset": 17}}, "greater than or equal to 18"),
        ({"export": {"fuse": ("softmx",)}}, "softmax"),
    ],
)
def test_what_cannot_be_is_refused_with_the_reason(sections: Any, told: str) -> None:
    with pytest.raises(ValidationError, match=told):
        run_spec(**sections)


def test_what_can_be_is_taken() -> None:
    spec = run_spec(export={"fuse": ("normalize", "softmax")}, serve=TENSORRT)
    assert spec.serve is not None
    assert (spec.serve.engine, spec.serve.tensorrt) == ("tensorrt", TensorRtSpec())
    assert ExportSpec().fuse == ()
    assert ServeSpec().engine == "onnxruntime"
