"""What a candidate is worth beside the float graph: quality with its interval, independence of rows, time and memory.

Invariant: both answer the same gate rows; what cannot be accepted any more is not timed. Nothing is decided here.

Covered: ONNX files. Not covered: whether what was measured is good enough (decision.py).
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np

from cluster.errors import ModelError
from cluster.spec.compress import CompressSpec
from trainers.compress.accuracy_gate import gate_outputs
from trainers.compress.candidate import Baseline, Candidate
from trainers.compress.latency import LARGEST_BATCH, paired_cost
from trainers.compress.macs import graph_macs
from trainers.compress.peak_memory import peak_memory_bytes
from trainers.compress.rows import CompressionRows
from trainers.export.graph_file import file_bytes
from trainers.export.independence import float_answers, graph_independence
from trainers.export.session import predict_graph

CLASS_ROWS_MIN = 3  # two lost rows of a class of ten are noise


def measure_baseline(path: Path, rows: CompressionRows) -> Baseline:
    """The float graph's answers, once for all candidates. Raises ModelError for NaN outputs."""
    outputs = predict_graph(path, rows.gate)
    bad = bad_rows(outputs)
    if bad:
        raise ModelError(
            f"Cannot compress {path.name}",
            found=f"{bad} of {len(outputs)} gate rows have NaN or infinite outputs",
            rule="candidates are compared with the float graph's answers, which must be numbers",
            remedy="Look for extreme values in the data, or train with a lower learning rate.",
        )
    answers = float_answers(path, rows.gate)
    return Baseline(
        path,
        outputs,
        file_bytes(path),
        graph_macs(path),
        peak_memory_bytes(path, rows=LARGEST_BATCH),
        answers,
        graph_independence(path, rows.gate, answers),
    )


def measure_candidate(
    made: Candidate, outputs: np.ndarray, baseline: Baseline, rows: CompressionRows, spec: CompressSpec
) -> Candidate:
    """The measured candidate; a stopped one where its answers are not numbers.

    Args:
        outputs: (N, C) of the candidate on the gate split.
    """
    made = replace(made, size_bytes=file_bytes(made.file))
    if bad := bad_rows(outputs):
        return made.stopped(f"{bad} of {len(outputs)} gate rows have NaN or infinite outputs")
    gate = gate_outputs(baseline.outputs, outputs, rows, spec.budget.max_drop)
    independence = graph_independence(made.file, rows.gate, baseline.answers, precision=made.precision)
    if not independence.independent:
        return made.measured(gate=gate, independence=independence)
    before, after = paired_cost(baseline.path, made.file, rows.gate, spec.target)
    memory = peak_memory_bytes(made.file, rows=LARGEST_BATCH, threads=spec.target.threads)
    worst = agreement = None
    if rows.task == "classification":
        agreement = float((outputs.argmax(1) == baseline.outputs.argmax(1)).mean())
        worst = worst_class_drop(baseline.outputs, outputs, rows)
    return made.measured(
        gate=gate,
        independence=independence,
        cost=after,
        baseline_cost=before,
        peak_memory_bytes=memory,
        agreement=agreement,
        worst_class_drop=worst,
    )


def bad_rows(outputs: np.ndarray) -> int:
    """How many rows have an output that is no finite number."""
    return int((~np.isfinite(outputs).reshape(len(outputs), -1).all(axis=1)).sum())


def worst_class_drop(baseline: np.ndarray, candidate: np.ndarray, rows: CompressionRows) -> float:
    """Largest loss of recall over the classes that lose at least `CLASS_ROWS_MIN` rows."""
    targets = rows.gate_targets
    before, after = baseline.argmax(1) == targets, candidate.argmax(1) == targets
    worst = 0.0
    for label in np.unique(targets):
        of_class = targets == label
        lost = int(before[of_class].sum()) - int(after[of_class].sum())
        if lost >= CLASS_ROWS_MIN:
            worst = max(worst, lost / int(of_class.sum()))
    return worst
