"""Ranges of activations: the same whatever the batches, in bounded memory; and the nodes that stay float for cause."""

from __future__ import annotations

import tracemalloc
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper
from onnxruntime.quantization import CalibrationMethod

from trainers.compress import calibrate
from trainers.compress.calibrate import write_ranges
from trainers.compress.exclude import find_exclusion
from trainers.compress.presets import StaticRecipe, cpu_preset
from trainers.compress.quantize import preprocess, quantize_int8_static
from trainers.compress.rows import CompressionRows
from trainers.export.session import open_session, run_batches

METHODS = (CalibrationMethod.MinMax, CalibrationMethod.Percentile, CalibrationMethod.Entropy)


@pytest.fixture
def prepared_graph(digits_graph: Path, tmp_path: Path) -> Path:
    preprocess(digits_graph, tmp_path / "prepared.onnx")
    return tmp_path / "prepared.onnx"


def ranges_of(graph: Path, rows: dict[str, np.ndarray], method: CalibrationMethod, cache: Path) -> dict[str, Any]:
    """Tensor -> (lowest, highest), read back from the cache as `quantize_static` does."""
    from onnxruntime.quantization.calibrate import load_tensors_data

    write_ranges(graph, rows, cache, StaticRecipe(cpu_preset(), method))
    return {name: np.array(data.range_value, np.float64).ravel() for name, data in load_tensors_data(cache).items()}


@pytest.mark.parametrize("method", METHODS, ids=lambda method: method.name)
def test_ranges_cover_all_rows_and_not_the_last_batch_only(
    prepared_graph: Path, prepared_digits: Any, tmp_path: Path, method: CalibrationMethod, monkeypatch: Any
) -> None:
    """ONNX Runtime's own way to merge drops what it has collected; here the loud row is in the first batch."""
    rows = {"image": np.array(prepared_digits.splits["calibration"].inputs["image"])}
    loud = np.concatenate([rows["image"][:4] * 3, rows["image"]])
    many = ranges_of(prepared_graph, {"image": loud}, method, tmp_path / "many.json")
    monkeypatch.setattr(calibrate.BatchReader.__init__, "__defaults__", (len(loud),))
    once = ranges_of(prepared_graph, {"image": loud}, method, tmp_path / "once.json")
    for name, (low, high) in many.items():
        spread = np.ptp(once[name]) or 1.0
        tolerance = 0.0 if method is CalibrationMethod.MinMax else 0.1 * spread  # histograms are widened bin by bin
        assert abs(low - once[name][0]) <= tolerance
        assert abs(high - once[name][1]) <= tolerance
    if method is CalibrationMethod.MinMax:
        quiet = ranges_of(prepared_graph, rows, method, tmp_path / "quiet.json")
        assert many["image"][1] > 2 * quiet["image"][1]


def test_memory_of_calibration_does_not_grow_with_the_rows(
    prepared_graph: Path, prepared_digits: Any, tmp_path: Path
) -> None:
    images = np.array(prepared_digits.splits["train"].inputs["image"])

    def peak(rows: int) -> int:
        recipe = StaticRecipe(cpu_preset(), CalibrationMethod.Percentile)
        tracemalloc.start()
        write_ranges(prepared_graph, {"image": np.resize(images, (rows, 1, 8, 8))}, tmp_path / f"{rows}.json", recipe)
        _, most = tracemalloc.get_traced_memory()
        tracemalloc.stop()
        return most

    inputs = 64 * 4 * (1600 - 200)
    assert peak(1600) < 1.3 * peak(200) + inputs


@pytest.mark.parametrize("recipe", ["int8_static_percentile", "int8_static_entropy", "int8_static_per_tensor"])
def test_other_calibrations_keep_a_real_network_within_the_budget(
    make_search: Any, digits_graph: Path, recipe: str
) -> None:
    search = make_search(recipes=[recipe], budget={"max_drop": 0.02})
    (candidate,) = search.try_graph_recipes(search.baseline)
    assert candidate.gate is not None
    assert candidate.gate.drop <= 0.02
    assert candidate.notes["method"] == {"int8_static_percentile": "Percentile", "int8_static_entropy": "Entropy"}.get(
        recipe, "MinMax"
    )
    operators = {node.op_type for node in onnx.load(str(candidate.path)).graph.node}
    assert "QuantizeLinear" in operators


def trapped_graph(path: Path, seed: int = 3) -> Path:
    """Three layers; one hidden channel is huge and unread: 8 bits for its tensor leave nothing for the others."""
    rng = np.random.default_rng(seed)
    sizes = (16, 32, 32, 5)
    weights = [(rng.standard_normal((a, b)) / np.sqrt(a)).astype(np.float32) for a, b in pairwise(sizes)]
    weights[0][:, 0] *= 3000
    weights[1][0, :] = 0
    nodes, tensors, last = [], [], "x"
    for i, weight in enumerate(weights):
        tensors.append(numpy_helper.from_array(weight, f"w{i}"))
        out = "logits" if i == 2 else f"h{i}"
        nodes.append(helper.make_node("MatMul", [last, f"w{i}"], [out], name=f"layer{i}"))
        if i < 2:
            nodes.append(helper.make_node("Tanh" if i else "Relu", [out], [f"a{i}"], name=f"act{i}"))
        last = f"a{i}"
    graph = helper.make_graph(
        nodes,
        "trapped",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["batch", 16])],
        [helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["batch", 5])],
        tensors,
    )
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10), str(path))
    return path


def test_only_the_nodes_that_do_the_harm_stay_in_float(tmp_path: Path) -> None:
    graph = trapped_graph(tmp_path / "float.onnx")
    preprocess(graph, tmp_path / "prepared.onnx")
    rng = np.random.default_rng(0)
    calibration, gate = (rng.standard_normal((rows, 16)).astype(np.float32) for rows in (200, 1000))

    def answer(path: Path) -> np.ndarray:
        return run_batches(open_session(path), {"x": gate})["logits"]

    targets = answer(graph).argmax(1)
    rows = CompressionRows("classification", {"x": calibration}, {"x": gate}, targets, 5)
    recipe = StaticRecipe(cpu_preset())
    plain = tmp_path / "plain.onnx"
    quantize_int8_static(tmp_path / "prepared.onnx", plain, rows.calibration, recipe, ranges=tmp_path / "r.json")
    assert (answer(plain).argmax(1) == targets).mean() < 0.8
    (tmp_path / "scratch").mkdir()
    target = tmp_path / "excluded.onnx"
    found = find_exclusion(tmp_path / "prepared.onnx", target, rows, cpu_preset(), 0.03, scratch=tmp_path / "scratch")
    assert (answer(target).argmax(1) == targets).mean() >= 0.97
    assert 0 < len(found["excluded"]) < found["nodes"]
    assert "layer2" not in found["excluded"]
    worst = max(found["ranking"], key=found["ranking"].get)
    assert worst in found["excluded"]
    assert "DequantizeLinear" in {node.op_type for node in onnx.load(str(target)).graph.node}
