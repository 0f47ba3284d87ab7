"""What is in an ONNX file, read from the file itself: opset, axes, size, operators. Never imports torch.

Invariant: a path of external data that leaves the file's folder, or a tensor that claims more than the file can hold,
is refused before anything is allocated for it.

Covered: one file with or without external data. Not covered: what the graph computes (parity.py, trainers/compress).
"""

from __future__ import annotations

import math
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx
from google.protobuf.message import DecodeError

from cluster.errors import ModelError

BITS_MIN = 4  # bits of the narrowest tensor element (INT4)


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
    for tensor in model.graph.initializer:
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


def check_untrusted(path: Path) -> onnx.ModelProto:
    """Load a file from elsewhere without its weights' external data, refusing what no honest file has.

    Raises ModelError for a file that is no ONNX, external data outside the folder or behind a link, and tensors that
    claim more bytes than there are.
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
    for tensor in model.graph.initializer:
        _check_claim(tensor, path, attempted)
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


def _external(tensor: onnx.TensorProto) -> dict[str, str]:
    return {entry.key: entry.value for entry in tensor.external_data}
