"""Accept or reject: each rule of the judge has a case that only it decides."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from pydantic import ValidationError

from cluster.bundle.signature import TensorSpec
from cluster.errors import DataError
from cluster.spec.compress import BudgetSpec, CompressSpec, ProxySpec
from trainers.compress.cpu import has_vnni
from trainers.compress.exclude import smallest_passing
from trainers.compress.gate import accuracy_gate
from trainers.compress.judge import decide_candidate, worst_class_drop
from trainers.compress.measure import Cost, tile_rows
from trainers.compress.presets import cpu_preset, tensorrt_preset
from trainers.compress.proxies import compare_outputs
from trainers.compress.rows import CompressionRows, rows_of, spread_rows
from trainers.data.shards import PreparedData, Split

FAST = Cost(1, 1.0, 2.0, 2.0, 8, 1000.0, 1.0, 2.0)
PASS = accuracy_gate(np.ones(2000, bool), np.ones(2000, bool), 0.01)
UNSURE = accuracy_gate(np.ones(50, bool), np.ones(50, bool), 0.01)


def spec(**changes: Any) -> CompressSpec:
    return CompressSpec.model_validate(changes)


def test_a_candidate_that_is_not_faster_is_rejected_whatever_its_accuracy() -> None:
    accepted, reason = decide_candidate(PASS, replace(FAST, speedup=0.98), 0.3, 0.0, spec())
    assert not accepted
    assert "not faster" in reason


def test_with_size_as_the_goal_speed_may_stand_still_but_bytes_must_fall() -> None:
    size = spec(target={"minimize": "size"})
    assert decide_candidate(PASS, replace(FAST, speedup=0.95), 0.3, 0.0, size)[0]
    assert "not smaller" in decide_candidate(PASS, FAST, 1.0, 0.0, size)[1]
    assert "slower" in decide_candidate(PASS, replace(FAST, speedup=0.5), 0.3, 0.0, size)[1]


def test_cost_is_judged_at_the_best_batch_size() -> None:
    cost = spec(target={"minimize": "cost"})
    assert decide_candidate(PASS, replace(FAST, speedup=0.9), 0.3, 0.0, cost)[0]
    assert not decide_candidate(PASS, replace(FAST, cost_ratio=0.9), 0.3, 0.0, cost)[0]


def test_a_class_that_falls_behind_rejects_a_candidate_whose_mean_is_fine() -> None:
    accepted, reason = decide_candidate(PASS, FAST, 0.3, 0.2, spec(max_class_drop=0.1))
    assert not accepted
    assert "one class" in reason


def test_what_an_undecided_gate_means_is_the_users_choice() -> None:
    assert UNSURE.verdict == "inconclusive"
    assert decide_candidate(UNSURE, FAST, 0.3, 0.0, spec(on_inconclusive="accept_point_estimate"))[0]
    accepted, reason = decide_candidate(UNSURE, FAST, 0.3, 0.0, spec(on_inconclusive="keep_baseline"))
    assert not accepted
    assert "rows would decide" in reason


def test_a_budget_of_zero_is_refused_with_the_reason() -> None:
    with pytest.raises(ValidationError, match="cannot be proved by any number of samples"):
        BudgetSpec(max_drop=0.0)


def test_a_class_must_lose_more_than_two_rows_to_count() -> None:
    targets = np.repeat([0, 1], [4, 40])
    right = np.eye(2, dtype=np.float32)[targets]
    rows = CompressionRows("classification", {}, {}, targets, 2)
    two_lost = right.copy()
    two_lost[:2] = two_lost[:2, ::-1]
    assert worst_class_drop(right, two_lost, rows) == 0.0
    three_lost = right.copy()
    three_lost[:3] = three_lost[:3, ::-1]
    assert worst_class_drop(right, three_lost, rows) == 0.75


def test_proxies_stop_the_hopeless_and_pass_the_equal() -> None:
    outputs = np.random.default_rng(0).normal(size=(64, 5))
    assert compare_outputs(outputs, outputs, classification=True).hopeless(ProxySpec()) is None
    noise = compare_outputs(outputs, -outputs, classification=True)
    assert "signal-to-noise" in (noise.hopeless(ProxySpec()) or "")
    assert "agrees" in (noise.hopeless(ProxySpec(min_sqnr_db=-300.0)) or "")
    assert compare_outputs(outputs, outputs * np.nan, classification=True).hopeless(ProxySpec()) is not None


@pytest.mark.parametrize("answer", range(11))
def test_bisection_finds_the_smallest_k_and_has_measured_its_neighbor(answer: int) -> None:
    asked: list[int] = []

    def passes(k: int) -> bool:
        asked.append(k)
        return k >= answer

    assert smallest_passing(10, passes) == answer
    assert answer == 0 or {answer, answer - 1} <= set(asked)
    assert len(asked) == len(set(asked)) <= 6


def test_bisection_says_when_nothing_passes() -> None:
    assert smallest_passing(10, lambda _: False) is None
    assert smallest_passing(0, lambda _: False) is None


def test_weights_get_seven_bits_where_the_cpu_lacks_vnni(tmp_path: Path) -> None:
    for flags, vnni in (("fpu avx2", False), ("fpu avx512_vnni", True)):
        (tmp_path / "cpuinfo").write_text(f"model name\t: x\nflags\t\t: {flags}\n")
        assert has_vnni(tmp_path / "cpuinfo") is vnni
    assert not has_vnni(tmp_path / "absent")
    assert cpu_preset(vnni=False).reduce_range
    assert not cpu_preset(vnni=True).reduce_range


def test_the_tensorrt_preset_is_symmetric_and_touches_weighted_layers_only() -> None:
    preset = tensorrt_preset()
    assert preset.activation == preset.weight
    assert preset.options["ActivationSymmetric"]
    assert not preset.options["QuantizeBias"]
    assert set(preset.op_types) == {"Conv", "Gemm", "MatMul"}


def prepared(calibration: list[int], gate: list[int]) -> PreparedData:
    def split(labels: list[int]) -> Split:
        return Split({"x": np.zeros((len(labels), 2), np.float32)}, np.array(labels, np.int64))

    tensor = TensorSpec(name="x", datatype="FP32", shape=(-1, 2))
    splits = {"calibration": split(calibration), "gate": split(gate)}
    return PreparedData(Path("nowhere"), "classification", ("a", "b"), (tensor,), splits, {})


def test_no_calibration_rows_and_one_class_are_refused() -> None:
    with pytest.raises(DataError, match="calibration split has no rows"):
        rows_of(prepared([], [0, 1]))
    with pytest.raises(DataError, match="gate split has no rows"):
        rows_of(prepared([0, 1], []))
    with pytest.raises(DataError, match="have the class 'b'"):
        rows_of(prepared([1, 1, 1], [0, 1]))


def test_rows_are_spread_over_a_sorted_split() -> None:
    chosen = spread_rows(100, 5)
    assert isinstance(chosen, np.ndarray)
    assert chosen.tolist() == [0, 24, 49, 74, 99]
    assert spread_rows(5, 100) == slice(None)


def test_rows_are_repeated_to_fill_a_batch() -> None:
    filled = tile_rows({"x": np.arange(6).reshape(3, 2)}, 5)["x"]
    assert filled.tolist() == [[0, 1], [2, 3], [4, 5], [0, 1], [2, 3]]
