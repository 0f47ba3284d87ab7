"""Bundles that cannot be served, each in a way of its own, of an endpoint `rolling` with rows of 1×8×8."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, helper

from cluster.bundle import finish_bundle, read_manifest
from cluster.bundle.manifest import MANIFEST
from tests.bundles import linear_graph, make_bundle, make_simulated_bundle

RAISES = "raises when it is run"
DIES = "ends its process"
WRONG = "answers otherwise than recorded"


def simulated(at: Path, **plan: object) -> Path:
    return make_simulated_bundle(at, item_shape=(1, 8, 8), name="rolling", **plan)


def with_other_answers(bundle: Path) -> Path:
    """Its sample's outputs are another model's."""
    with np.load(bundle / "sample.npz", allow_pickle=False) as arrays:
        sample = {name: array + (1 if name.startswith("outputs") else 0) for name, array in arrays.items()}
    np.savez(bundle / "sample.npz", **sample)
    return _with_hashes(bundle)


def _for_four_rows(at: Path) -> Path:
    """A graph that answers a batch of four alone: its sample."""
    graph = linear_graph((1, 8, 8), 10).graph
    graph.initializer.append(helper.make_tensor("shape", TensorProto.INT64, [2], [4, 10]))
    graph.node[-1].output[0] = "free"
    graph.node.append(helper.make_node("Reshape", ["free", "shape"], ["logits"]))
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)
    return make_bundle(at, name="rolling", graph=onnx.ModelProto.FromString(model.SerializeToString()))


def _with_hashes(bundle: Path) -> Path:
    """The manifest lists the files as they are now: their maker's mistake, and no damage."""
    finish_bundle(bundle, read_manifest(bundle))
    return bundle


def _with_graph(at: Path, data: bytes) -> Path:
    bundle = make_bundle(at, name="rolling")
    (bundle / "model.onnx").write_bytes(data)
    return _with_hashes(bundle)


def _with_manifest(at: Path, old: str, new: str) -> Path:
    bundle = make_bundle(at, name="rolling")
    text = (bundle / MANIFEST).read_text()
    assert old in text
    (bundle / MANIFEST).write_text(text.replace(old, new))
    return bundle


def _line(*numbers: int) -> str:
    """The end of a shape as a manifest has it."""
    return "".join(f"          {number},\n" for number in numbers).rstrip(",\n") + "\n"


BAD: dict[str, Callable[[Path], Path]] = {
    RAISES: _for_four_rows,
    DIES: lambda at: simulated(at, die_at=0.0),
    WRONG: lambda at: with_other_answers(make_bundle(at, name="rolling")),
    "hangs": lambda at: simulated(at, wedge_at=0.0),
    "raises in the engine": lambda at: simulated(at, raise_at=0.0),
    "has no memory for the largest batch": lambda at: simulated(at, memory_rows=8),
    "cannot be loaded": lambda at: simulated(at, refuse="a plan for another GPU"),
    "has no graph": lambda at: _with_graph(at, b""),
    "has half a graph": lambda at: _with_graph(at, linear_graph((1, 8, 8), 10).SerializeToString()[:900]),
    "has another input": lambda at: _with_manifest(at, '"name": "x"', '"name": "y"'),
    "has another shape": lambda at: _with_manifest(at, _line(8, 8), _line(8, 9)),
    "has another datatype": lambda at: _with_manifest(at, "FP32", "INT64"),
    "has another number of outputs": lambda at: _with_manifest(at, _line(10), _line(11)),
    "has no such variant": lambda at: _with_manifest(at, '"default_variant": "fp32"', '"default_variant": "fp8"'),
    "was cut short": lambda at: _with_manifest(at, '"size_bytes": ', '"size_bytes": 1'),
}
"""Kind -> a bundle that is bad in this way. Those with another signature need `--force` to come as far."""
