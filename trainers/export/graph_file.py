"""What is in an ONNX file, read from the file itself: opset, axes, size, operators. Never imports torch.

Invariant: a path of external data that leaves the file's folder, or a tensor that claims more than the file can hold,
is refused before anything is allocated for it; so is a graph that would make a tensor of absurd size from a few bytes.

Covered: one file with or without external data, tensors in subgraphs, functions and node attributes. Not covered: what
the graph computes (parity.py, trainers/compress).
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx
from google.protobuf.message import DecodeError
from onnx import numpy_helper

from cluster.errors import ModelError

BITS_MIN = 4  # bits of the narrowest tensor element (INT4)
ROW_ELEMENTS_MAX = 1 << 31  # of one row of an input or output: 8 GiB in float32
MADE_ELEMENTS_MAX = 1 << 33  # of a tensor that a node makes from a constant shape: 32 GiB in float32
SHAPE_INPUT = {"ConstantOfShape": 0, "Expand": 1}
"""Operators that make a tensor of the size that one of their inputs says -> which input."""


@dataclass(frozen=True)
class GraphFacts:
    """What is in an ONNX file, read from the file itself."""

    opset: int
    size_bytes: int
    """With external data."""
    num_nodes: int
    operators: dict[str, int]
    num_parameters: int


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
    for tensor in all_tensors(model):
        if tensor.data_location != onnx.TensorProto.EXTERNAL:
            continue
        location = _external(tensor).get("location", "")
        if not location or Path(location).name != location:
            raise ModelError(
                "Cannot read the ONNX file",
                found=f"tensor '{tensor.name}' lies in {location!r}",
                rule="external data must lie beside the file, in the same folder",
                remedy="Do not use files from a source that you do not trust.",
            )
        names.add(location)
    return names


def all_tensors(model: onnx.ModelProto) -> Iterator[onnx.TensorProto]:
    """Every tensor of a model: of the graph, of graphs inside nodes, of functions, of attributes."""
    yield from _graph_tensors(model.graph)
    for function in model.functions:
        yield from _node_tensors(function.node)


def _graph_tensors(graph: onnx.GraphProto) -> Iterator[onnx.TensorProto]:
    yield from graph.initializer
    for sparse in graph.sparse_initializer:
        yield from (sparse.values, sparse.indices)
    yield from _node_tensors(graph.node)


def _node_tensors(nodes: Iterable[onnx.NodeProto]) -> Iterator[onnx.TensorProto]:
    for node in nodes:
        for attribute in node.attribute:
            if attribute.HasField("t"):
                yield attribute.t
            yield from attribute.tensors
            for graph in (*([attribute.g] if attribute.HasField("g") else []), *attribute.graphs):
                yield from _graph_tensors(graph)


def check_untrusted(path: Path) -> onnx.ModelProto:
    """Load a file from elsewhere without its weights' external data, refusing what no honest file has.

    Raises ModelError for a file that is no ONNX, external data outside the folder or behind a link, tensors that claim
    more bytes than there are, and inputs, outputs or made tensors of absurd size.
    """
    attempted = f"Cannot use the ONNX file {path}"
    try:
        model = onnx.load(str(path), load_external_data=False)
    except FileNotFoundError:
        raise ModelError(attempted, found="there is no such file", remedy="Give the path of an ONNX file.") from None
    except (DecodeError, ValueError, OSError) as error:
        raise ModelError(attempted, found=f"it cannot be read: {error}", rule="it must be an ONNX file") from None
    for name in external_files(model):
        data = path.parent / name
        if data.is_symlink() or not data.is_file():
            raise ModelError(
                attempted, found=f"its data file {name} is missing or a link", rule="external data lies beside the file"
            )
    for tensor in all_tensors(model):
        _check_claim(tensor, path, attempted)
    _check_sizes(model, attempted)
    if not model.graph.node:
        raise ModelError(attempted, found="it has no operators", rule="it must be an ONNX model")
    return model


def _check_claim(tensor: onnx.TensorProto, path: Path, attempted: str) -> None:
    """A tensor's dimensions must fit into the bytes that are there."""
    claimed = math.prod(tensor.dims) if tensor.dims else 1
    if tensor.data_location == onnx.TensorProto.EXTERNAL:
        entry = _external(tensor)
        offset = int(entry.get("offset") or 0)
        have = (path.parent / entry["location"]).stat().st_size - offset
        have = min(have, int(entry.get("length") or have))
    else:
        have = tensor.ByteSize()
    if any(dim < 0 for dim in tensor.dims) or claimed * BITS_MIN > have * 8:
        raise ModelError(
            attempted,
            found=f"tensor '{tensor.name}' claims dimensions {list(tensor.dims)}, the file has {have:,} bytes for it",
            rule="a tensor must fit into its bytes",
            remedy="The file is damaged or hostile; get it again from where it was made.",
        )


def _check_sizes(model: onnx.ModelProto, attempted: str) -> None:
    """Sizes that are written in the graph and that no byte of the file pays for."""
    for value in (*model.graph.input, *model.graph.output):
        row = [max(1, dim.dim_value) for dim in value.type.tensor_type.shape.dim[1:]]
        if math.prod(row) > ROW_ELEMENTS_MAX:
            raise _absurd(attempted, f"one row of '{value.name}' has dimensions {row}", ROW_ELEMENTS_MAX)
    shapes = {tensor.name: tensor for tensor in model.graph.initializer}
    shapes |= {node.output[0]: a.t for node in model.graph.node for a in node.attribute if node.op_type == "Constant"}
    for node in model.graph.node:
        place = SHAPE_INPUT.get(node.op_type)
        shape = shapes.get(node.input[place]) if place is not None and place < len(node.input) else None
        if (
            shape is None
            or shape.data_location == onnx.TensorProto.EXTERNAL
            or shape.data_type != onnx.TensorProto.INT64
        ):
            continue
        dims = [int(size) for size in numpy_helper.to_array(shape).reshape(-1)]
        if math.prod(max(1, size) for size in dims) > MADE_ELEMENTS_MAX:
            raise _absurd(attempted, f"node '{node.name or node.op_type}' makes {dims}", MADE_ELEMENTS_MAX)


def _absurd(attempted: str, found: str, most: int) -> ModelError:
    return ModelError(
        attempted,
        found=found,
        rule=f"at most {most:,} elements are taken",
        remedy="The file is damaged or hostile; get it again from where it was made.",
    )


def _external(tensor: onnx.TensorProto) -> dict[str, str]:
    return {entry.key: entry.value for entry in tensor.external_data}
