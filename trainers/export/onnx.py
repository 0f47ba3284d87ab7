"""A torch module -> one ONNX file whose batch axis is proved dynamic.

Dynamic axes are given as strings: a `torch.export.Dim` that the module contradicts is silently frozen to the example
batch by torch 2.13, a string raises (docs/compress.md). The example batch has at least two rows for the same reason.

Invariant: a file that `export_onnx` leaves behind passed the ONNX checker, has the requested opset, and has
a symbolic batch axis on every input and output; else an error is raised and no file is left.

Covered: float graphs of any module with tensor inputs and one or more tensor outputs, files above 2 GB (external
data). Not covered: graphs with control flow on values; low precision (precision.py).
"""

from __future__ import annotations

import inspect
import logging
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from cluster.bundle.signature import TensorSpec
from cluster.bundle.target import TARGET_UNIT
from cluster.errors import ModelError
from trainers.export.graph_file import GraphFacts, check_file
from trainers.export.reasons import check_batch_range, export_error
from trainers.models.predict import tensors_of

BATCH_DIM = "batch"
EXAMPLE_ROWS_MIN = 2
PROTOBUF_LIMIT_BYTES = 1 << 31  # protobuf cannot write a larger message
EXTERNAL_DATA_BYTES = PROTOBUF_LIMIT_BYTES - (64 << 20)  # leaves room for the graph beside the weights
EXTERNAL_SUFFIX = ".data"  # torch's exporter writes weights of large models there
OPSET_MIN = 18  # torch's exporter implements 18 and upwards
SCOPES = "pkg.torch.onnx.name_scopes"  # of a node: the modules around the call, as the exporter notes them
EXPORTER_LOGGERS = ("torch.onnx", "torch.onnx._internal", "onnxscript", "onnx_ir", "torch.export")


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
        for leftover in (path, path.with_name(path.name + EXTERNAL_SUFFIX)):
            leftover.unlink(missing_ok=True)
        raise


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
    tensors = tensors_of({tensor.name: example[tensor.name] for tensor in inputs}, slice(None))
    dynamic = _dynamic_shapes(module, inputs)
    try:
        with quiet_exporter(), torch.no_grad():
            program = torch.onnx.export(
                module,
                tensors,
                dynamo=True,
                opset_version=opset,
                dynamic_shapes=dynamic,
                input_names=[tensor.name for tensor in inputs],
                output_names=list(outputs),
                optimize=True,
                verbose=False,
            )
    except torch.onnx.OnnxExporterError as error:
        raise export_error(error, module, lambda: _trace(module, tensors, dynamic)) from error
    if program is None:
        raise ModelError("Cannot export to ONNX", found="the exporter returned nothing")
    _name_target_unit(program)
    check_batch_range(program.exported_program, module)
    size = sum(p.numel() * p.element_size() for p in (*module.parameters(), *module.buffers()))
    path.parent.mkdir(parents=True, exist_ok=True)
    program.save(str(path), external_data=size > EXTERNAL_DATA_BYTES)


def _name_target_unit(program: torch.onnx.ONNXProgram) -> None:
    """The nodes that bring a quantity back into its unit get names by which conversions know them."""
    for node in program.model.graph:
        scopes = node.metadata_props.get(SCOPES, "")
        if f".{TARGET_UNIT}'" in scopes or f"'{TARGET_UNIT}'" in scopes:
            node.name = f"{TARGET_UNIT}.{node.name}"


def _trace(module: nn.Module, tensors: tuple[torch.Tensor, ...], dynamic: tuple[Any, ...]) -> list[Any]:
    """Nodes of what torch.onnx.export traced before it failed: as traced, and decomposed into the exporter's operators.

    The strings are dynamic axes there, not names.
    """
    shapes = torch.utils._pytree.tree_map(lambda _: torch.export.Dim.DYNAMIC, dynamic)
    with quiet_exporter(), torch.no_grad():
        exported = torch.export.export(module, tensors, dynamic_shapes=shapes, strict=False)
        return [*exported.graph.nodes, *exported.run_decompositions().graph.nodes]


def _dynamic_shapes(module: nn.Module, inputs: tuple[TensorSpec, ...]) -> tuple[Any, ...]:
    """In the structure of forward's parameters: `forward(*inputs)` is one parameter that holds a tuple."""
    axes = tuple(_dynamic_axes(tensor) for tensor in inputs)
    kinds = [parameter.kind for parameter in inspect.signature(module.forward).parameters.values()]
    return (axes,) if kinds[:1] == [inspect.Parameter.VAR_POSITIONAL] else axes


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
