"""A torch module -> one ONNX file whose batch axis is proved dynamic.

Dynamic axes are given as strings: a `torch.export.Dim` that the module contradicts is silently frozen to the example
batch by torch 2.13, a string raises (docs/compress.md). The example batch has at least two rows for the same reason.

Invariant: a file that `export_onnx` leaves behind passed the ONNX checker, has the opset that was asked for, and has
a symbolic batch axis on every input and output; else an error is raised and no file is left.

Covered: float graphs of any module with tensor inputs and one or more tensor outputs, files above 2 GB (external
data). Not covered: graphs with control flow on values; low precision (precision.py).
"""

from __future__ import annotations

import logging
import warnings
from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx
import torch
from torch import nn

from cluster.bundle.signature import TensorSpec
from cluster.errors import ModelError
from trainers.evaluate.predict import tensors_of

BATCH_DIM = "batch"
EXAMPLE_ROWS_MIN = 2
PROTOBUF_LIMIT_BYTES = 1 << 31  # protobuf cannot write a larger message
EXTERNAL_DATA_BYTES = PROTOBUF_LIMIT_BYTES - (64 << 20)  # leaves room for the graph beside the weights
OPSET_MIN = 18  # torch's exporter implements 18 and upwards
EXPORTER_LOGGERS = ("torch.onnx", "torch.onnx._internal", "onnxscript", "onnx_ir", "torch.export")


@dataclass(frozen=True)
class GraphFacts:
    """What is in an ONNX file, read from the file itself."""

    opset: int
    size_bytes: int
    """With external data."""
    num_nodes: int
    operators: dict[str, int]
    num_parameters: int


def export_onnx(
    module: nn.Module,
    inputs: tuple[TensorSpec, ...],
    example: Mapping[str, np.ndarray],
    path: Path,
    *,
    opset: int,
    outputs: tuple[str, ...] = ("logits",),
) -> GraphFacts:
    """Write `module` to `path` and check the file.

    Args:
        example: at least two real rows of every input.

    Raises:
        ModelError: the module specializes on its batch, has an operator without an ONNX form, or the file is not
            what was asked for.
    """
    if opset < OPSET_MIN:
        raise ModelError(
            "Cannot export to ONNX",
            found=f"opset {opset} was asked for",
            rule=f"torch's exporter writes opset {OPSET_MIN} and upwards",
            remedy="Raise export.opset.",
        )
    rows = min(len(array) for array in example.values())
    if rows < EXAMPLE_ROWS_MIN:
        raise ModelError(
            "Cannot export to ONNX",
            found=f"the example has {rows} row(s)",
            rule="an example of at least 2 rows keeps the batch axis dynamic",
            remedy="Give more rows.",
        )
    _write(module, inputs, example, path, opset=opset, outputs=outputs)
    try:
        return check_file(path, opset=opset)
    except ModelError:
        path.unlink(missing_ok=True)
        raise


def check_file(path: Path, *, opset: int | None = None) -> GraphFacts:
    """Run the ONNX checker, and assert opset and dynamic batch from the file. Raises ModelError."""
    attempted = f"Cannot use the exported file {path.name}"
    try:
        onnx.checker.check_model(str(path))
        model = onnx.load(str(path), load_external_data=False)
    except (onnx.checker.ValidationError, ValueError, OSError) as error:
        raise ModelError(attempted, found=" ".join(str(error).split()), rule="it must pass the ONNX checker") from error
    facts = graph_facts(model, path)
    if opset is not None and facts.opset != opset:
        raise ModelError(
            attempted,
            found=f"it has opset {facts.opset}, asked for was {opset}",
            rule="torch's exporter replaces opsets that it cannot write without an error",
            remedy=f"Set export.opset to {facts.opset}, or upgrade torch and onnx.",
        )
    for value in (*graph_inputs(model), *model.graph.output):
        dims = value.type.tensor_type.shape.dim
        if not dims or not dims[0].dim_param:
            frozen = dims[0].dim_value if dims else "a scalar"
            raise ModelError(
                attempted,
                found=f"axis 0 of '{value.name}' is {frozen}",
                rule="axis 0 of every input and output is the batch and must be dynamic",
                remedy="Look for code in forward that depends on the number of rows (x.shape[0] used as a number).",
            )
    return facts


def graph_inputs(model: onnx.ModelProto) -> list[onnx.ValueInfoProto]:
    """Inputs of the graph that are not initializers."""
    initializers = {tensor.name for tensor in model.graph.initializer}
    return [value for value in model.graph.input if value.name not in initializers]


def graph_facts(model: onnx.ModelProto, path: Path) -> GraphFacts:
    """Facts of a loaded model whose file is `path`."""
    opset = next((entry.version for entry in model.opset_import if entry.domain in ("", "ai.onnx")), 0)
    parameters = sum(int(np.prod(tensor.dims)) for tensor in model.graph.initializer)
    return GraphFacts(
        opset=opset,
        size_bytes=file_bytes(path, model),
        num_nodes=len(model.graph.node),
        operators=dict(sorted(Counter(node.op_type for node in model.graph.node).items())),
        num_parameters=parameters,
    )


def file_bytes(path: Path, model: onnx.ModelProto | None = None) -> int:
    """Size of an ONNX file and of its external data."""
    model = model or onnx.load(str(path), load_external_data=False)
    return path.stat().st_size + sum((path.parent / name).stat().st_size for name in external_files(model))


def external_files(model: onnx.ModelProto) -> set[str]:
    """Names of the files that hold external tensors. Raises ModelError for a path that leaves the folder."""
    names = set()
    for tensor in model.graph.initializer:
        if tensor.data_location != onnx.TensorProto.EXTERNAL:
            continue
        location = {entry.key: entry.value for entry in tensor.external_data}.get("location", "")
        if not location or Path(location).is_absolute() or ".." in Path(location).parts:
            raise ModelError(
                "Cannot read the ONNX file",
                found=f"tensor '{tensor.name}' lies in {location!r}",
                rule="external data must lie beside the file",
                remedy="Do not use files from a source that you do not trust.",
            )
        names.add(location)
    return names


def _write(
    module: nn.Module,
    inputs: tuple[TensorSpec, ...],
    example: Mapping[str, np.ndarray],
    path: Path,
    *,
    opset: int,
    outputs: tuple[str, ...],
) -> None:
    module = module.cpu().eval()
    ordered = {tensor.name: example[tensor.name] for tensor in inputs}
    try:
        with quiet_exporter(), torch.no_grad():
            program = torch.onnx.export(
                module,
                tensors_of(ordered, slice(None)),
                dynamo=True,
                opset_version=opset,
                dynamic_shapes=tuple(_dynamic_axes(tensor) for tensor in inputs),
                input_names=list(ordered),
                output_names=list(outputs),
                optimize=True,
                verbose=False,
            )
    except torch.onnx.OnnxExporterError as error:
        from trainers.export.reasons import export_error

        raise export_error(error, module) from error
    if program is None:
        raise ModelError("Cannot export to ONNX", found="the exporter returned nothing")
    size = sum(p.numel() * p.element_size() for p in (*module.parameters(), *module.buffers()))
    path.parent.mkdir(parents=True, exist_ok=True)
    program.save(str(path), external_data=size > EXTERNAL_DATA_BYTES)


def _dynamic_axes(tensor: TensorSpec) -> dict[int, str]:
    named = {axis: f"{tensor.name}_{axis}" for axis, size in enumerate(tensor.shape) if size == -1 and axis > 0}
    return {0: BATCH_DIM, **named}


@contextmanager
def quiet_exporter() -> Iterator[None]:
    """Keep the exporter's notes about packages that are not installed, and its own deprecations, off the screen."""
    loggers = [logging.getLogger(name) for name in EXPORTER_LOGGERS]
    levels = [logger.level for logger in loggers]
    try:
        for logger in loggers:
            logger.setLevel(logging.ERROR)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)
