"""Which nodes stay in float: ranked by the harm that each does alone, cut by bisection.

1. Quantize only node i, compare the outputs with the float graph's: the divergence ranks the nodes.
2. Bisect the smallest k for which "all but the k most harmful" passes the gate on the point estimate: O(log n) files.
3. The bisection has measured both k and k - 1, which is the check of its assumption that more float is never worse.

Invariant: the file that is left is the one of the k that is reported.

Covered: nodes with weights. Not covered: pairs of nodes that only together do harm.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from onnxruntime.quantization import CalibrationMethod

from cluster.errors import ModelError
from trainers.compress.accuracy_gate import gate_outputs
from trainers.compress.presets import StaticPreset, StaticRecipe
from trainers.compress.proxies import compare_outputs
from trainers.compress.quantize import quantizable_nodes, quantize_int8_static, thin_convolutions
from trainers.compress.rows import CompressionRows, spread_rows
from trainers.export.session import predict_graph

RANKING_ROWS = 64  # enough to order nodes; the cut is measured on the whole gate split


def find_exclusion(
    prepared: Path, target: Path, rows: CompressionRows, preset: StaticPreset, max_drop: float, *, scratch: Path
) -> dict[str, Any]:
    """Write the file with the fewest float nodes that keeps the budget. Returns what was found, for the report.

    Raises ModelError when the graph has no node to choose from, or float everywhere would not keep the budget.
    """
    nodes = _nodes_to_choose_from(prepared, preset)
    ranges = scratch / "minmax.json"

    def make(path: Path, *, exclude: tuple[str, ...] = (), only: tuple[str, ...] = ()) -> Path:
        recipe = StaticRecipe(preset, CalibrationMethod.MinMax, exclude=exclude, only=only)
        quantize_int8_static(prepared, path, rows.calibration, recipe, ranges=ranges)
        return path

    ranking = rank_nodes(nodes, prepared, rows, lambda name: make(scratch / "one.onnx", only=(name,)))
    order = [name for name, _ in ranking]
    float_outputs = predict_graph(prepared, rows.gate)
    evaluations = 0

    def keeps_budget(k: int) -> bool:
        nonlocal evaluations
        evaluations += 1
        outputs = predict_graph(make(scratch / f"k{k}.onnx", exclude=tuple(order[:k])), rows.gate)
        return gate_outputs(float_outputs, outputs, rows, max_drop).drop <= max_drop

    k = smallest_passing(len(order) - 1, keeps_budget)
    if k is None:
        raise ModelError(
            "Cannot choose nodes",
            found=f"even with {len(order) - 1} of {len(order)} nodes in float the drop is above {max_drop:g}",
            rule="at least one node must be quantized within the budget",
            remedy="Raise compress.budget.max_drop or use another recipe.",
        )
    make(target, exclude=tuple(order[:k]))
    return {"excluded": order[:k], "ranking": dict(ranking), "evaluations": evaluations, "nodes": len(order)}


def _nodes_to_choose_from(prepared: Path, preset: StaticPreset) -> list[str]:
    thin = set(thin_convolutions(prepared, preset.thin_channels_max))  # they stay in float in any case
    nodes = [name for name in quantizable_nodes(prepared) if name not in thin]
    if not nodes:
        raise ModelError(
            "Cannot choose nodes", found="the graph has no Conv, Gemm or MatMul", rule="there is nothing to quantize"
        )
    return nodes


def rank_nodes(
    nodes: list[str], prepared: Path, rows: CompressionRows, make: Callable[[str], Path]
) -> list[tuple[str, float]]:
    """(node, divergence when only it is quantized), most harmful first."""
    chosen = spread_rows(len(next(iter(rows.calibration.values()))), RANKING_ROWS)
    some = {name: array[chosen] for name, array in rows.calibration.items()}
    expected = predict_graph(prepared, some)
    harm = []
    for name in nodes:
        proxies = compare_outputs(
            expected, predict_graph(make(name), some), classification=rows.task == "classification"
        )
        harm.append((name, proxies.kl if proxies.kl is not None else -proxies.sqnr_db))
    return sorted(harm, key=lambda item: item[1], reverse=True)


def smallest_passing(most: int, passes: Callable[[int], bool]) -> int | None:
    """The smallest k in 0..most for which `passes(k)`, assuming it stays true; None when `most` fails.

    Calls `passes` for the answer and for answer - 1 among others, each k once.
    """
    if passes(0):
        return 0
    if most == 0 or not passes(most):
        return None
    failed, passed = 0, most
    while passed - failed > 1:
        middle = (failed + passed) // 2
        if passes(middle):
            passed = middle
        else:
            failed = middle
    return passed
