"""Rewriting of the float graph after the exporter's own optimizer (which always runs) and before it is quantized.

Invariant: a graph with Q/DQ pairs is never rewritten (folding would strip them: FasterAI-Labs/fasterai#45); what is
left on disk passed the same checks as the exporter's file, and a step that changes nothing leaves the file as it was.

Covered: onnxslim (optional), ONNX Runtime's fusions for transformers with the count of fused nodes. Not covered: parity
(float_graph.py tries the result on real rows); TensorRT, which knows none of ONNX Runtime's own operators.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import onnx

from cluster.atomic import write_bytes
from cluster.errors import MissingDependencyError, ModelError
from cluster.spec.export import OptimizeSpec
from cluster.temporary import scratch_folder
from trainers.export.graph_file import check_file, external_files
from trainers.export.onnx import quiet_exporter

QDQ = ("QuantizeLinear", "DequantizeLinear", "DynamicQuantizeLinear")
QUANTIZED_DOMAINS = ("com.microsoft",)  # QGemm, QLinearAdd, … live there and start with Q
TRANSFORMER = "bert"
"""ONNX Runtime's rules for encoders: attention, skip and layer norm, Gelu with bias. Heads are read from the graph."""


def optimize_graph(path: Path, spec: OptimizeSpec) -> dict[str, Any]:
    """Rewrite the file in place by the steps of the spec.

    Returns:
        `{"<step>": {"nodes_before": int, "nodes_after": int, …}}`; the transformer step has `fused`, by operator.

    Raises:
        ModelError: the graph is quantized already, or too large for these tools.
        MissingDependencyError: onnxslim is requested and not installed.
    """
    steps = [(name, step) for name, step in (("onnxslim", _slim), ("transformer", _fuse)) if getattr(spec, name)]
    facts: dict[str, Any] = {}
    for name, step in steps:
        before = onnx.load(str(path), load_external_data=False)
        refuse_quantized(before, path)
        if external_files(before):
            raise ModelError(
                f"Cannot optimize {path.name} by {name}",
                found="its weights lie beside the file",
                rule="these tools take graphs of one file (below 2 GB)",
                remedy=f"Set export.optimize.{name} to false.",
            )
        model, notes = step(path)
        facts[name] = {"nodes_before": len(before.graph.node), "nodes_after": len(model.graph.node), **notes}
        if notes.get("fused") != {}:  # else nothing matched
            _replace(path, model)
    return facts


def refuse_quantized(model: onnx.ModelProto, path: Path) -> None:
    """Raise ModelError for a graph with Q/DQ pairs or quantized operators."""
    found = sorted({node.op_type for node in model.graph.node if node.op_type in QDQ or _is_quantized(node)})
    if found:
        raise ModelError(
            f"Cannot optimize {path.name}",
            found=f"it holds {', '.join(found)}",
            rule="no optimizer runs after Q/DQ insertion: folding constants would strip the pairs",
            remedy="Optimize the float graph, then quantize it.",
        )


def _is_quantized(node: onnx.NodeProto) -> bool:
    return node.domain in QUANTIZED_DOMAINS and node.op_type.startswith(("Q", "DynamicQuantize", "MatMulInteger"))


def _slim(path: Path) -> tuple[onnx.ModelProto, dict[str, Any]]:
    try:
        import onnxslim
    except ImportError as error:
        raise MissingDependencyError(
            f"Cannot optimize {path.name} by onnxslim",
            found=f"the module does not load: {error}",
            rule="it is optional",
            remedy="Install the extra: pip install 'manta-ml[optimize]', or set export.optimize.onnxslim to false.",
        ) from None
    return onnxslim.slim(onnx.load(str(path))), {}


def _fuse(path: Path) -> tuple[onnx.ModelProto, dict[str, Any]]:
    from onnxruntime.transformers.optimizer import optimize_model

    with quiet_exporter():
        # opt_level 0: ONNX Runtime's own passes would write operators of this very CPU into the file
        made = optimize_model(str(path), model_type=TRANSFORMER, num_heads=0, hidden_size=0, opt_level=0)
    fused = {name: int(count) for name, count in made.get_fused_operator_statistics().items() if count}
    for domain in {node.domain for node in made.model.graph.node} - {one.domain for one in made.model.opset_import}:
        made.model.opset_import.append(onnx.helper.make_opsetid(domain, 1))  # the optimizer leaves this to its caller
    return made.model, {"fused": fused}


def _replace(path: Path, model: onnx.ModelProto) -> None:
    """Put the model in the file's place once it passed the checks."""
    with scratch_folder("optimize") as scratch:
        candidate = scratch / path.name
        onnx.save(model, str(candidate))
        check_file(candidate)
        write_bytes(path, candidate.read_bytes())
