"""The float ONNX graph of a trained run, with its parity proved: made once, by compress or by export."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from cluster.errors import DataError
from cluster.spec.run import RunSpec
from trainers.data.shards import PreparedData
from trainers.export.bundle import FLOAT_GRAPH
from trainers.export.graph_file import check_file
from trainers.export.onnx import EXAMPLE_ROWS_MIN, export_onnx
from trainers.export.optimize import optimize_graph
from trainers.export.parity import BATCH_SIZES, check_parity
from trainers.models.weights import load_module


def write_float_graph(spec: RunSpec, prepared: PreparedData, weights: Path, folder: Path) -> dict[str, Any]:
    """Export the trained module into `folder`, optimize it and check parity on real rows. Raises ModelError.

    Returns:
        `{"parity": {…}, "optimized": {…}, "opset": int, "operators": {…}, "num_parameters": int, "size_bytes": int}`.
    """
    module = load_module(spec.model, prepared.inputs, prepared.num_outputs, weights, prepared.target)
    rows = real_rows(prepared)
    path = folder / FLOAT_GRAPH
    facts = export_onnx(module, prepared.inputs, rows, path, opset=spec.export.opset)
    optimized = optimize_graph(path, spec.export.optimize)
    if optimized:
        facts = check_file(path)
    parity = check_parity(module, path, rows, spec.export.parity, prepared.target)
    return {
        "parity": parity,
        "optimized": optimized,
        "opset": facts.opset,
        "operators": facts.operators,
        "num_parameters": facts.num_parameters,
        "size_bytes": facts.size_bytes,
    }


def real_rows(prepared: PreparedData, most: int = max(BATCH_SIZES)) -> dict[str, np.ndarray]:
    """A few real rows of every input, from the gate split or the first split that has enough of them."""
    for name in ("gate", "calibration", "validation", "train", "test"):
        split = prepared.splits.get(name)
        if split is not None and len(split) >= EXAMPLE_ROWS_MIN:
            return {key: np.array(array[:most]) for key, array in split.inputs.items()}
    raise DataError(
        "Cannot export the model",
        found="no split has two rows",
        rule="the export is checked on real rows",
        remedy="Give more data.",
    )
