"""Small real bundles for tests: an ONNX graph made by hand, a sample made by ONNX Runtime, a manifest with hashes.

Not a fixture: call it with a folder. The model is `logits = flatten(x) @ W + b` with seeded weights.
"""

from __future__ import annotations

import json
import time
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
from onnx import TensorProto, helper, numpy_helper

from cluster.bundle import (
    BundleManifest,
    TensorSignature,
    TensorSpec,
    Variant,
    finish_bundle,
    read_manifest,
    write_bundle,
)
from cluster.bundle.files import TRANSFORMS
from cluster.bundle.signature import NUMPY_OF

SAMPLE_ROWS = 4
ONNX_TYPES = {
    "BOOL": TensorProto.BOOL,
    "UINT8": TensorProto.UINT8,
    "UINT16": TensorProto.UINT16,
    "UINT32": TensorProto.UINT32,
    "UINT64": TensorProto.UINT64,
    "INT8": TensorProto.INT8,
    "INT16": TensorProto.INT16,
    "INT32": TensorProto.INT32,
    "INT64": TensorProto.INT64,
    "FP16": TensorProto.FLOAT16,
    "FP32": TensorProto.FLOAT,
    "FP64": TensorProto.DOUBLE,
    "BYTES": TensorProto.STRING,
}


def linear_graph(item_shape: tuple[int, ...], num_outputs: int, *, seed: int = 0) -> onnx.ModelProto:
    """`logits = flatten(x) @ W + b`, batch axis free."""
    rng = np.random.default_rng(seed)
    width = int(np.prod(item_shape))
    weight = (rng.standard_normal((width, num_outputs)) / np.sqrt(width)).astype(np.float32)
    bias = rng.standard_normal(num_outputs).astype(np.float32)
    graph = helper.make_graph(
        [
            helper.make_node("Flatten", ["x"], ["flat"], axis=1),
            helper.make_node("Gemm", ["flat", "weight", "bias"], ["logits"]),
        ],
        "linear",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["batch", *item_shape])],
        [helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["batch", num_outputs])],
        [numpy_helper.from_array(weight, "weight"), numpy_helper.from_array(bias, "bias")],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)
    onnx.checker.check_model(model)
    return model


def mlp_graph(width: int, hidden: int, num_outputs: int, *, layers: int = 2, seed: int = 0) -> onnx.ModelProto:
    """An MLP on flat rows: `layers` hidden layers with ReLU, then logits."""
    rng = np.random.default_rng(seed)
    sizes = [width, *([hidden] * layers), num_outputs]
    nodes, weights, last = [], [], "x"
    for index, (fan_in, fan_out) in enumerate(pairwise(sizes)):
        weight = (rng.standard_normal((fan_in, fan_out)) / np.sqrt(fan_in)).astype(np.float32)
        weights += [numpy_helper.from_array(weight, f"w{index}")]
        weights += [numpy_helper.from_array(np.zeros(fan_out, np.float32), f"b{index}")]
        is_last = index == layers
        out = "logits" if is_last else f"g{index}"
        nodes.append(helper.make_node("Gemm", [last, f"w{index}", f"b{index}"], [out]))
        if not is_last:
            nodes.append(helper.make_node("Relu", [out], [f"r{index}"]))
        last = f"r{index}"
    graph = helper.make_graph(
        nodes,
        "mlp",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["batch", width])],
        [helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["batch", num_outputs])],
        weights,
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)


def make_bundle(
    folder: Path,
    *,
    name: str = "digits",
    item_shape: tuple[int, ...] = (1, 8, 8),
    num_outputs: int = 10,
    seed: int = 0,
    task: str = "classification",
    graph: onnx.ModelProto | None = None,
) -> Path:
    """Write a bundle to `folder` and return it. `graph` takes the place of the linear model: `x` -> `logits`."""
    signature = TensorSignature(
        inputs=(TensorSpec(name="x", datatype="FP32", shape=(-1, *item_shape)),),
        outputs=(TensorSpec(name="logits", datatype="FP32", shape=(-1, num_outputs)),),
    )
    x = np.random.default_rng(seed + 1).random((SAMPLE_ROWS, *item_shape), dtype=np.float32)
    with write_bundle(folder) as partial:
        path = partial / "model.onnx"
        onnx.save(graph or linear_graph(item_shape, num_outputs, seed=seed), path)
        session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
        (logits,) = session.run(["logits"], {"x": x})
        np.savez(partial / "sample.npz", **{"inputs/x": x, "outputs/fp32/logits": logits})
        finish_bundle(
            partial,
            BundleManifest(
                name=name,
                created_unix_s=time.time(),
                task="classification" if task == "classification" else "regression",
                classes=tuple(str(i) for i in range(num_outputs)) if task == "classification" else (),
                signature=signature,
                variants=(Variant(name="fp32", file="model.onnx", precision="fp32"),),
                default_variant="fp32",
                model={"family": "linear"},
                files={},
            ),
        )
    return folder


def make_echo_bundle(folder: Path, *, name: str = "echo", datatypes: tuple[str, ...] = tuple(ONNX_TYPES)) -> Path:
    """A model that gives each input back: `in_fp32` -> `out_fp32` and so on, shape (-1, 2)."""
    names = [(datatype, f"in_{datatype.lower()}", f"out_{datatype.lower()}") for datatype in datatypes]
    graph = helper.make_graph(
        [helper.make_node("Identity", [source], [target]) for _, source, target in names],
        "echo",
        [helper.make_tensor_value_info(source, ONNX_TYPES[d], ["batch", 2]) for d, source, _ in names],
        [helper.make_tensor_value_info(target, ONNX_TYPES[d], ["batch", 2]) for d, _, target in names],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)
    signature = TensorSignature.model_validate(
        {
            "inputs": tuple({"name": source, "datatype": d, "shape": (-1, 2)} for d, source, _ in names),
            "outputs": tuple({"name": target, "datatype": d, "shape": (-1, 2)} for d, _, target in names),
        }
    )
    sample: dict[str, np.ndarray] = {}
    for datatype, source, target in names:
        value = np.array([[b"a", b"bc"]]) if datatype == "BYTES" else np.array([[0, 1]], NUMPY_OF[datatype])
        sample |= {f"inputs/{source}": value, f"outputs/fp32/{target}": value}
    with write_bundle(folder) as partial:
        onnx.save(model, partial / "model.onnx")
        np.savez(partial / "sample.npz", **sample)
        finish_bundle(
            partial,
            BundleManifest(
                name=name,
                created_unix_s=time.time(),
                task="regression",
                signature=signature,
                variants=(Variant(name="fp32", file="model.onnx", precision="fp32"),),
                default_variant="fp32",
                model={"family": "echo"},
                files={},
            ),
        )
    return folder


def make_simulated_bundle(
    folder: Path, *, name: str = "played", item_shape: tuple[int, ...] = (4,), seed: int = 0, **plan: Any
) -> Path:
    """A bundle whose engine is simulated (serve/testing.py): `logits` is the sum of a row of `x`."""
    signature = TensorSignature(
        inputs=(TensorSpec(name="x", datatype="FP32", shape=(-1, *item_shape)),),
        outputs=(TensorSpec(name="logits", datatype="FP32", shape=(-1, 1)),),
    )
    x = np.random.default_rng(seed + 1).random((SAMPLE_ROWS, *item_shape), dtype=np.float32)
    total = x.reshape(SAMPLE_ROWS, -1).sum(axis=1, dtype=np.float64).astype(np.float32).reshape(-1, 1)
    footprint = plan.get("footprint_bytes")
    with write_bundle(folder) as partial:
        (partial / "model.simulated").write_text(json.dumps(plan), encoding="utf-8")
        np.savez(partial / "sample.npz", **{"inputs/x": x, "outputs/fp32/logits": total})
        variant = Variant(name="fp32", file="model.simulated", precision="fp32", footprint_bytes=footprint)
        finish_bundle(
            partial,
            BundleManifest(
                name=name,
                created_unix_s=time.time(),
                task="regression",
                signature=signature,
                variants=(variant,),
                default_variant="fp32",
                model={"family": "simulated"},
                files={},
            ),
        )
    return folder


def with_transforms(folder: Path, transforms: dict[str, Any]) -> Path:
    """The bundle with these transforms and their input's name, written anew."""
    old = read_manifest(folder)
    name = str(transforms["name"])
    (tensor,) = old.signature.inputs
    signature = old.signature.model_copy(update={"inputs": (tensor.model_copy(update={"name": name}),)})
    graph = onnx.load(folder / "model.onnx")
    graph.graph.input[0].name = graph.graph.node[0].input[0] = name
    with np.load(folder / "sample.npz", allow_pickle=False) as arrays:
        sample = {key.replace(f"inputs/{tensor.name}", f"inputs/{name}"): arrays[key] for key in arrays.files}
    with write_bundle(folder) as partial:
        onnx.save(graph, partial / "model.onnx")
        np.savez(partial / "sample.npz", **sample)  # type: ignore[arg-type]
        (partial / TRANSFORMS).write_text(json.dumps(transforms), encoding="utf-8")
        finish_bundle(partial, old.model_copy(update={"signature": signature}))
    return folder


def softmax(graph: Path, rows: np.ndarray) -> np.ndarray:
    """(N, C) probabilities of a classifier's only input, by ONNX Runtime and float64."""
    session = onnxruntime.InferenceSession(str(graph), providers=["CPUExecutionProvider"])
    logits = session.run(None, {session.get_inputs()[0].name: np.ascontiguousarray(rows)})[0].astype(np.float64)
    exponents = np.exp(logits - logits.max(axis=1, keepdims=True))
    return exponents / exponents.sum(axis=1, keepdims=True)
