"""`python -m serve.adopt model.onnx BUNDLE --name NAME`: a bundle of a model that was trained elsewhere.

For models that come from Triton's or KServe's repositories: names, datatypes and shapes are read from the graph, and
its own answers to a few drawn rows become the sample that every replica must give again before it answers.

Invariant: what is written passes the checks of a load, or nothing is written.
Covered: one ONNX file whose first axis is free, as Triton's with `max_batch_size` above 0 are. Not covered: weights in
files beside the graph, raw rows (`/predict` takes tensors: there are no transforms).
"""

from __future__ import annotations

import argparse
import shutil
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np

from cluster.bundle import BundleManifest, TensorSignature, TensorSpec, Variant, finish_bundle, write_bundle
from cluster.command import run_main
from cluster.errors import BundleError, RequestError
from serve.engines.engine import EngineRequest
from serve.engines.onnxruntime import OnnxRuntimeEngine

ROWS = 4
DATATYPES = {
    "bool": "BOOL", "uint8": "UINT8", "uint16": "UINT16", "uint32": "UINT32", "uint64": "UINT64", "int8": "INT8",
    "int16": "INT16", "int32": "INT32", "int64": "INT64", "float16": "FP16", "float": "FP32", "double": "FP64",
    "string": "BYTES",
}  # fmt: skip
"""ONNX Runtime's names of tensor types -> the protocol's."""


def main(arguments: list[str] | None = None) -> int:
    """Write the bundle. Returns the exit code."""
    return run_main(_adopt, arguments)


def _adopt(arguments: list[str]) -> int:
    parser = argparse.ArgumentParser(prog="python -m serve.adopt", description=__doc__, allow_abbrev=False)
    parser.add_argument("model", type=Path, help="an ONNX file")
    parser.add_argument("bundle", type=Path, help="folder to write")
    parser.add_argument("--name", help="the model's name (default: the folder's)")
    parser.add_argument("--labels", type=Path, help="class labels, one a line: Triton's label_filename")
    options = parser.parse_args(arguments)
    signature = adopt(options.model, options.bundle, name=options.name, labels=options.labels)
    for tensor in (*signature.inputs, *signature.outputs):
        sys.stdout.write(f"{tensor.name}: {tensor.datatype} {list(tensor.shape)}\n")
    return 0


def adopt(model: Path, target: Path, *, name: str | None = None, labels: Path | None = None) -> TensorSignature:
    """Write a bundle of `model` to `target`. Raises RequestError, BundleError."""
    if target.exists():
        raise RequestError(f"Cannot write {target}", found="it is there already", remedy="Choose another folder.")
    try:
        classes = tuple(labels.read_text(encoding="utf-8").split("\n")) if labels is not None else ()
        with write_bundle(target) as folder:
            shutil.copyfile(model, folder / "model.onnx")
            signature = read_signature(folder / "model.onnx")
            sample = draw_sample(folder / "model.onnx", signature)
            np.savez(folder / "sample.npz", **sample)  # type: ignore[arg-type]
            finish_bundle(folder, _manifest(name or target.name, signature, _labels(classes, signature)))
    except (OSError, UnicodeDecodeError) as error:
        raise RequestError(f"Cannot adopt {model}", found=str(error)) from None
    return signature


def read_signature(path: Path) -> TensorSignature:
    """Inputs and outputs of an ONNX graph. Raises BundleError, RequestError."""
    import onnxruntime

    try:
        session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    except Exception as error:  # noqa: BLE001 - ONNX Runtime has no tree of its own
        found = f"ONNX Runtime {onnxruntime.__version__} says: {str(error)[:500]}"
        raise BundleError("Cannot load the model", found=found, rule="one ONNX file that holds its weights") from None
    inputs, outputs = session.get_inputs(), session.get_outputs()
    return TensorSignature(inputs=tuple(map(_tensor, inputs)), outputs=tuple(map(_tensor, outputs)))


def draw_sample(path: Path, signature: TensorSignature) -> dict[str, np.ndarray]:
    """Rows of small numbers and the model's answers. Free axes have the length 1. Raises BundleError, RequestError."""
    rng = np.random.default_rng(0)
    inputs = {tensor.name: _draw(tensor, rng) for tensor in signature.inputs}
    engine = OnnxRuntimeEngine(EngineRequest(path=path, signature=signature, max_rows=ROWS))
    try:
        outputs = engine.run(inputs)
    finally:
        engine.close()
    for tensor in signature.outputs:
        array = outputs[tensor.name]
        why = tensor.mismatch(array)
        if why or len(array) != ROWS or (array.dtype.kind == "f" and not np.isfinite(array).all()):
            raise RequestError(
                "Cannot adopt the model",
                found=f"output {tensor.name!r} {why or f'has {len(array)} rows, or a value that is not finite'}",
                rule="each row of input has one finite row of each output",
            )
    named = {f"inputs/{name}": array for name, array in inputs.items()}
    return {**named, **{f"outputs/fp32/{name}": array for name, array in outputs.items()}}


def _tensor(found: Any) -> TensorSpec:
    datatype = DATATYPES.get(found.type.removeprefix("tensor(").rstrip(")"))
    shape = tuple(size if isinstance(size, int) else -1 for size in found.shape or ())
    if datatype is None or not shape or shape[0] != -1:
        raise RequestError(
            "Cannot adopt the model",
            found=f"{found.name!r} is {found.type} of shape {list(found.shape or ())}",
            rule="tensors of the protocol's datatypes whose first axis is free",
            remedy="Export it with a dynamic batch axis.",
        )
    return TensorSpec.model_validate({"name": found.name, "datatype": datatype, "shape": shape})


def _draw(tensor: TensorSpec, rng: np.random.Generator) -> np.ndarray:
    shape = (ROWS, *(1 if size == -1 else size for size in tensor.item_shape))
    if tensor.datatype == "BYTES":
        return np.full(shape, b"a", dtype=object)
    if tensor.dtype.kind == "f":
        return rng.standard_normal(shape).astype(tensor.dtype)
    return rng.integers(0, 2, shape).astype(tensor.dtype)


def _labels(lines: tuple[str, ...], signature: TensorSignature) -> tuple[str, ...]:
    labels = tuple(line.strip() for line in lines if line.strip())
    if labels and signature.outputs[0].shape[-1] not in (-1, len(labels)):
        raise RequestError(
            "Cannot adopt the model",
            found=f"there are {len(labels)} labels",
            rule=f"one for each of the {signature.outputs[0].shape[-1]} values of output {signature.outputs[0].name!r}",
        )
    return labels


def _manifest(name: str, signature: TensorSignature, labels: tuple[str, ...]) -> BundleManifest:
    return BundleManifest(
        name=name,
        created_unix_s=time.time(),
        task="classification" if labels else "regression",
        classes=labels,
        signature=signature,
        variants=(Variant(name="fp32", file="model.onnx", precision="fp32"),),
        default_variant="fp32",
        model={"family": "adopted"},
        files={},
    )


if __name__ == "__main__":
    sys.exit(main())
