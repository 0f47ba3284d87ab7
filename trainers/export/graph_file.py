"""What is in an ONNX file, read from the file itself: opset, axes, size, operators. Never imports torch.

Invariant: a path of external data that leaves the file's folder, or a tensor that claims more than the file can hold,
is refused before anything is allocated for it; so is a graph that would make a tensor of absurd size from a few bytes.

Covered: one file with or without external data, tensors in subgraphs, functions and node attributes. Not covered: what
the graph computes (parity.py, trainers/compress), sizes that only running it shows (a loop that grows its output).
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx
from google.protobuf.message import DecodeError
from onnx import numpy_helper

from cluster.atomic import digest_json, sha256_file
from cluster.bundle.target import TARGET_UNIT
from cluster.errors import ModelError

BITS_MIN = 4  # bits of the narrowest tensor element (INT4)
ROW_ELEMENTS_MAX = 1 << 31  # of one row of an input or output: 8 GiB in float32
MADE_ELEMENTS_MAX = 1 << 33  # of a tensor that a node makes from a constant shape: 32 GiB in float32
SIZE_INPUT = {"ConstantOfShape": 0, "Expand": 1, "Tile": 1, "OneHot": 1, "Pad": 1, "Resize": 3}
"""Operators that make a tensor of the size in one of their inputs -> which input."""
SIZE_VALUES_MAX = 256  # numbers of a tensor that is read as a size: no honest rank comes near


@dataclass(frozen=True)
class GraphFacts:
    """What is in an ONNX file, read from the file itself."""

    opset: int
    size_bytes: int
    """With external data."""
    num_nodes: int
    operators: dict[str, int]
    num_parameters: int


def unit_nodes(model: onnx.ModelProto) -> list[str]:
    """Names of the nodes that bring a quantity back into its unit: they stay in float."""
    return [node.name for node in model.graph.node if node.name.startswith(f"{TARGET_UNIT}.")]


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


def graph_digest(path: Path) -> str:
    """sha256 of an ONNX file, with its external data where it has some: weights beside it are part of the model."""
    names = sorted(external_files(onnx.load(str(path), load_external_data=False)))
    own = sha256_file(path)
    return digest_json([own, *(sha256_file(path.parent / name) for name in names)]) if names else own


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
    for graph in _all_graphs(model):
        yield from graph.initializer
        for sparse in graph.sparse_initializer:
            yield from (sparse.values, sparse.indices)
    for node in _all_nodes(model):
        for attribute in node.attribute:
            if attribute.HasField("t"):
                yield attribute.t
            yield from attribute.tensors


def _all_graphs(model: onnx.ModelProto) -> Iterator[onnx.GraphProto]:
    yield model.graph
    for node in _all_nodes(model):
        yield from _graphs_of(node)


def _all_nodes(model: onnx.ModelProto) -> Iterator[onnx.NodeProto]:
    """Every node of a model, those of branches, loops and functions too."""
    waiting = [*model.graph.node, *(node for function in model.functions for node in function.node)]
    while waiting:
        node = waiting.pop()
        yield node
        waiting += [inner for graph in _graphs_of(node) for inner in graph.node]


def _graphs_of(node: onnx.NodeProto) -> Iterator[onnx.GraphProto]:
    for attribute in node.attribute:
        yield from (*([attribute.g] if attribute.HasField("g") else []), *attribute.graphs)


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
    if not path.stat().st_size:
        raise ModelError(attempted, found="the file is empty (0 bytes)", remedy="Copy it again.")
    for name in external_files(model):
        data = path.parent / name
        if data.is_symlink() or not data.is_file():
            raise ModelError(
                attempted, found=f"its data file {name} is missing or a link", rule="external data lies beside the file"
            )
    for tensor in all_tensors(model):
        _check_claim(tensor, path, attempted)
    _check_rows(model, attempted)
    _check_made(model, path.parent, attempted)
    if not model.graph.node:
        raise ModelError(attempted, found="it has no operators", rule="it must be an ONNX model")
    return model


def _check_claim(tensor: onnx.TensorProto, path: Path, attempted: str) -> None:
    """A tensor's dimensions must fit into the bytes that are there."""
    claimed = math.prod(tensor.dims) if tensor.dims else 1
    have = _external_bytes(tensor, path) if tensor.data_location == onnx.TensorProto.EXTERNAL else tensor.ByteSize()
    if any(dim < 0 for dim in tensor.dims) or claimed * BITS_MIN > have * 8:
        raise ModelError(
            attempted,
            found=f"tensor '{tensor.name}' claims dimensions {list(tensor.dims)}, the file has {have:,} bytes for it",
            rule="a tensor must fit into its bytes",
            remedy="The file is damaged or hostile; get it again from where it was made.",
        )


def _external_bytes(tensor: onnx.TensorProto, path: Path) -> int:
    """Bytes that lie in the data file for an external tensor; -1 for an offset or length that is no place in it."""
    entry = _external(tensor)
    size = (path.parent / entry["location"]).stat().st_size
    try:
        offset = int(entry.get("offset") or 0)
        length = int(entry.get("length") or size - offset)
    except ValueError:
        return -1
    return min(size - offset, length) if offset >= 0 and length >= 0 else -1


def _check_rows(model: onnx.ModelProto, attempted: str) -> None:
    """One row of an input or output has a size that a host can hold."""
    for value in (*model.graph.input, *model.graph.output):
        row = [max(1, dim.dim_value) for dim in value.type.tensor_type.shape.dim[1:]]
        if math.prod(row) > ROW_ELEMENTS_MAX:
            raise _absurd(attempted, f"one row of '{value.name}' has dimensions {row}", ROW_ELEMENTS_MAX)


def _check_made(model: onnx.ModelProto, folder: Path, attempted: str) -> None:
    """Sizes that are written in the graph, also inside branches, and that no byte of the file pays for."""
    constants = {tensor.name: tensor for graph in _all_graphs(model) for tensor in graph.initializer}
    values = {name: _size_values(tensor, folder, attempted) for name, tensor in constants.items()}
    values |= {node.output[0]: _constant_values(node, folder, attempted)
               for node in _all_nodes(model) if node.op_type == "Constant" and node.output}  # fmt: skip
    for node in _all_nodes(model):
        dims = _made_dims(node, values)
        if math.prod(max(1, size) for size in dims) > MADE_ELEMENTS_MAX:
            raise _absurd(attempted, f"node '{node.name or node.op_type}' makes {dims}", MADE_ELEMENTS_MAX)


def _made_dims(node: onnx.NodeProto, values: Mapping[str, list[int]]) -> list[int]:
    """Numbers whose product is at most the size of what the node makes; empty where the graph does not hold them."""
    if node.op_type in ("RandomNormal", "RandomUniform"):
        return [size for attribute in node.attribute if attribute.name == "shape" for size in attribute.ints]
    if node.op_type == "Range" and len(node.input) == 3:
        start, limit, step = (values.get(name, [])[:1] for name in node.input)
        return [abs(limit[0] - start[0]) // (abs(step[0]) or 1)] if start and limit and step else []
    place = SIZE_INPUT.get(node.op_type)
    if place is None or place >= len(node.input):
        return []
    dims = values.get(node.input[place], [])
    return [max(dims, default=0)] if node.op_type == "Pad" else dims


def _constant_values(node: onnx.NodeProto, folder: Path, attempted: str) -> list[int]:
    """Whole numbers of a Constant node; none for other contents."""
    for attribute in node.attribute:
        if attribute.name == "value":
            return _size_values(attribute.t, folder, attempted)
        if attribute.name in ("value_int", "value_ints"):
            return [attribute.i] if attribute.name == "value_int" else list(attribute.ints)
    return []


def _size_values(tensor: onnx.TensorProto, folder: Path, attempted: str) -> list[int]:
    """Whole numbers of a tensor that is short enough to be a size; none for other tensors."""
    if tensor.data_type != onnx.TensorProto.INT64 or math.prod(tensor.dims) > SIZE_VALUES_MAX:
        return []
    try:
        return [int(size) for size in numpy_helper.to_array(tensor, str(folder)).reshape(-1)]
    except (ValueError, OSError, onnx.checker.ValidationError) as error:
        raise ModelError(
            attempted,
            found=f"tensor '{tensor.name}' cannot be read: {' '.join(str(error).split())}",
            rule="a tensor's bytes fit its type and dimensions",
        ) from None


def _absurd(attempted: str, found: str, most: int) -> ModelError:
    return ModelError(
        attempted,
        found=found,
        rule=f"at most {most:,} elements are taken",
        remedy="The file is damaged or hostile; get it again from where it was made.",
    )


def _external(tensor: onnx.TensorProto) -> dict[str, str]:
    return {entry.key: entry.value for entry in tensor.external_data}
