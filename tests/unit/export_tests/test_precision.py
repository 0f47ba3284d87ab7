"""What counts as proof of an engine's precision, on texts in the form that TensorRT's inspector is documented to give.

Forms: a convolution with its weights' type (NVIDIA's developer guide), kernels that Myelin fused ("kgen", "gemm"),
reformatting copies, and the names-only list of an engine that was not built with detailed verbosity.
"""

from __future__ import annotations

import json
from typing import Any

import pytest

from cluster.errors import ModelError
from trainers.export.precision import Precision, prove_engine


def tensor(kind: str) -> dict[str, Any]:
    return {"Name": "t", "Location": "Device", "Dimensions": [1, 8, 8, 8], "Format/Datatype": kind}


def convolution(kind: str, weights: str) -> dict[str, Any]:
    return {
        "Name": "conv + relu",
        "LayerType": "CaskConvolution",
        "Inputs": [tensor(kind)],
        "Outputs": [tensor(kind)],
        "ParameterType": "Convolution",
        "Weights": {"Type": weights, "Count": 9408},
        "Bias": {"Type": "Float", "Count": 64},
        "TacticName": "sm80_xmma_fprop_implicit_gemm",
    }


def gemm(kind: str) -> dict[str, Any]:
    return {"Name": "/fc/MatMul", "LayerType": "gemm", "Inputs": [tensor(kind)], "Outputs": [tensor(kind)]}


def around(kind: str) -> dict[str, Any]:
    return {
        "Name": "Reformatting CopyNode",
        "LayerType": "Reformat",
        "ParameterType": "Reformat",
        "Inputs": [tensor(kind)],
    }


def engine(*layers: Any) -> str:
    return json.dumps({"Layers": list(layers), "Bindings": ["x", "logits"]})


@pytest.mark.parametrize(
    ("precision", "layers"),
    [
        ("fp32", (convolution("Row major linear FP32", "Float"), gemm("Float"))),
        ("fp16", (around("Row major linear FP32"), convolution("Channel major FP16 format", "Half"), gemm("Half"))),
        ("bf16", (convolution("Row major linear BFloat16", "BFloat16"), gemm("BFloat16"))),
        ("int8", (around("Float"), convolution("Thirty-two wide channel vectorized row major Int8 format", "Int8"))),
    ],
)
def test_the_documented_forms_are_proof(precision: Precision, layers: tuple[Any, ...]) -> None:
    facts = prove_engine(engine(*layers), precision)
    assert facts["proved"] == facts["multiplying"]
    assert facts["layers"] == len(layers)


@pytest.mark.parametrize(
    ("precision", "layers"),
    [
        ("fp16", (around("Row major linear FP16"), convolution("Row major linear FP32", "Float"))),
        ("fp32", (around("Row major linear FP32"), convolution("Row major linear BFloat16", "BFloat16"))),
        ("int8", (convolution("Int8", "Int8"), gemm("Half"), gemm("Half"))),
        ("bf16", (gemm("Half"),)),
    ],
)
def test_a_copy_or_one_layer_of_many_is_no_proof(precision: Precision, layers: tuple[Any, ...]) -> None:
    with pytest.raises(ModelError, match=f"Cannot use the engine as {precision}"):
        prove_engine(engine(*layers), precision)


@pytest.mark.parametrize("layers", [("conv + relu", "fc"), ()])
def test_an_engine_that_tells_no_types_is_not_believed(layers: tuple[str, ...]) -> None:
    with pytest.raises(ModelError, match="detailed profiling verbosity"):
        prove_engine(engine(*layers), "fp32")
