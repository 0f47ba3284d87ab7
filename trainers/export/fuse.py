"""Work of the endpoint inside the graph: standardizing before it, probabilities and class names after it.

The nodes are put around a finished graph, also a quantized one: nothing inside it is touched or folded. Invariant: what
is fused is done once: transforms.json then leaves it out, `logits` stays the first output, and the fused file's answers
are compared with the unfused ones on real rows.

Covered: `normalize` for images and arrays, `softmax` and `labels` for classification. Not covered: transforms of
tables and text, which are more than arithmetic.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from cluster.bundle.signature import TensorSpec
from cluster.bundle.target import TargetTransform
from cluster.bundle.transforms import ArrayTransforms, Standardize, Transforms
from cluster.errors import ModelError
from cluster.spec.export import FusedPart, ParitySpec
from trainers.export.parity import allowed_difference
from trainers.export.session import open_session, run_batches

PROBABILITIES, LABEL = "probabilities", "label"
LOW_PRECISION_ALLOWED = (1e-2, 5e-2)
"""Absolute and relative, for graphs that are not fp32: a value on the edge of a step may round to the next one."""


@dataclass(frozen=True)
class Fusion:
    """What is put around a graph."""

    parts: tuple[FusedPart, ...]
    classes: tuple[str, ...] = ()
    transforms: ArrayTransforms | None = None
    """The unfused transforms, when `normalize` is a part."""
    target: TargetTransform | None = None
    """Of a quantity: what difference matters follows its unit."""

    @property
    def outputs(self) -> tuple[TensorSpec, ...]:
        """Outputs beside the logits."""
        found = []
        if "softmax" in self.parts:
            found.append(TensorSpec(name=PROBABILITIES, datatype="FP32", shape=(-1, len(self.classes))))
        if "labels" in self.parts:
            found.append(TensorSpec(name=LABEL, datatype="BYTES", shape=(-1,)))
        return tuple(found)

    def served_transforms(self) -> ArrayTransforms | None:
        """What is left to do before the graph: the same reading of rows and images, standardized by 0 and 1."""
        if self.transforms is None:
            return None
        nothing = Standardize(shape=(1,), mean=(0.0,), deviation=(1.0,))
        return self.transforms.model_copy(update={"steps": (nothing,)})

    def raw(self, rows: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        """Prepared rows as the fused graph takes them."""
        return self.transforms.undo(rows) if self.transforms is not None else dict(rows)


def plan_fusion(
    parts: tuple[FusedPart, ...],
    *,
    classes: tuple[str, ...],
    transforms: Transforms | ArrayTransforms | None,
    target: TargetTransform | None = None,
) -> Fusion | None:
    """The fusion of `export.fuse`, if this model allows it. Raises ModelError."""
    if not parts:
        return None
    if "normalize" in parts and not isinstance(transforms, ArrayTransforms):
        raise ModelError(
            "Cannot put normalize into the graph",
            found="the data is a table or text, or was not standardized",
            rule="standardizing of images and arrays is arithmetic that ONNX has; encoding columns is not",
            remedy="Take normalize out of export.fuse: the endpoint applies transforms.json as it does now.",
        )
    after = [part for part in parts if part != "normalize"]
    if after and not classes:
        raise ModelError(
            f"Cannot put {', '.join(after)} into the graph",
            found="the task is regression",
            rule="only classes have probabilities and labels",
            remedy=f"Take {', '.join(after)} out of export.fuse.",
        )
    normalized = transforms if isinstance(transforms, ArrayTransforms) and "normalize" in parts else None
    return Fusion(parts, classes, normalized, target)


def fuse_graph(path: Path, fusion: Fusion, rows: Mapping[str, np.ndarray], parity: ParitySpec, *, exact: bool) -> None:
    """Rewrite the file in place, and compare it with what it was on prepared rows. Raises ModelError.

    Args:
        exact: the graph is fp32 and must agree within `parity`.
    """
    before = run_batches(open_session(path), rows)
    model = onnx.load(str(path), load_external_data=False)
    logits = model.graph.output[0].name
    if fusion.transforms is not None:
        _standardize_first(model.graph, fusion.transforms)
    if "softmax" in fusion.parts:
        model.graph.node.append(helper.make_node("Softmax", [logits], [PROBABILITIES], name="fused_softmax", axis=-1))
    if "labels" in fusion.parts:
        _name_classes(model.graph, logits, fusion.classes)
    model.graph.output.extend(_value(spec) for spec in fusion.outputs)
    onnx.save(model, str(path))
    onnx.checker.check_model(str(path))
    after = run_batches(open_session(path), fusion.raw(rows))
    allowed = (parity.absolute, parity.relative) if exact else LOW_PRECISION_ALLOWED
    _compare(path, before[logits], after, fusion, allowed)


def _standardize_first(graph: onnx.GraphProto, transforms: ArrayTransforms) -> None:
    """x -> (x - mean) / deviation, step by step, between the input and all that read it."""
    inner = f"{transforms.name}_standardized"
    for node in graph.node:
        node.input[:] = [inner if name == transforms.name else name for name in node.input]
    made, last = [], transforms.name
    for number, step in enumerate(transforms.steps):
        for word, operator, values in (("mean", "Sub", step.mean), ("deviation", "Div", step.deviation)):
            constant = f"fused_{word}_{number}"
            array = np.array(values, np.float32).reshape(step.shape)
            graph.initializer.append(numpy_helper.from_array(array, constant))
            is_last = number == len(transforms.steps) - 1 and word == "deviation"
            target = inner if is_last else f"fused_{operator.lower()}_{number}"
            made.append(helper.make_node(operator, [last, constant], [target], name=f"fused_{word}_{number}_node"))
            last = target
    kept = list(graph.node)
    del graph.node[:]
    graph.node.extend([*made, *kept])


def _name_classes(graph: onnx.GraphProto, logits: str, classes: tuple[str, ...]) -> None:
    encoded = np.array([name.encode() for name in classes], dtype=object)
    names = numpy_helper.from_array(encoded, "fused_classes")
    graph.initializer.append(names)
    graph.node.append(helper.make_node("ArgMax", [logits], ["fused_best"], name="fused_argmax", axis=-1, keepdims=0))
    graph.node.append(helper.make_node("Gather", ["fused_classes", "fused_best"], [LABEL], name="fused_label"))


def _value(spec: TensorSpec) -> onnx.ValueInfoProto:
    kind = TensorProto.STRING if spec.datatype == "BYTES" else TensorProto.FLOAT
    return helper.make_tensor_value_info(spec.name, kind, ["batch", *spec.item_shape])


def _compare(
    path: Path, want: np.ndarray, got: Mapping[str, Any], fusion: Fusion, allowed: tuple[float, float]
) -> None:
    logits = next(iter(got.values()))
    shifted = np.exp(want - want.max(axis=-1, keepdims=True))
    expected = {"logits": want, PROBABILITIES: shifted / shifted.sum(axis=-1, keepdims=True)}
    for name, found in (("logits", logits), (PROBABILITIES, got.get(PROBABILITIES))):
        if found is None:
            continue
        difference = np.abs(found.astype(np.float64) - expected[name])
        if (difference > allowed_difference(expected[name], allowed, fusion.target)).any():
            raise ModelError(
                f"Cannot accept the fused file {path.name}",
                found=f"its {name} differ from the unfused file's by up to {difference.max():.3g}",
                rule=f"at most {allowed[0]:g} + {allowed[1]:g} × |unfused| is allowed",
                remedy="Take the part out of export.fuse.",
            )
    if LABEL in got and list(got[LABEL]) != [fusion.classes[i] for i in logits.argmax(axis=-1)]:
        raise ModelError(f"Cannot accept the fused file {path.name}", found="its labels are not those of its logits")
