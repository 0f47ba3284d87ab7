"""Accept or reject, choose, compare: each rule has a case that only it decides."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from pydantic import ValidationError

from cluster.spec.compress import BudgetSpec, CompressSpec
from trainers.compress.accuracy_gate import accuracy_gate
from trainers.compress.candidate import BASELINE, DENSE, Candidate
from trainers.compress.decision import acceptance, choose_best, compare_with_dense
from trainers.compress.latency import Cost

FAST = Cost(1, 1.0, 2.0, 2.0, 8, 1000.0, 1.0, 2.0)
PASS = accuracy_gate(np.ones(2000, bool), np.ones(2000, bool), 0.01)
UNSURE = accuracy_gate(np.ones(50, bool), np.ones(50, bool), 0.01)
ROWS = 2000
SPEC = CompressSpec()


def spec(**changes: Any) -> CompressSpec:
    return CompressSpec.model_validate(changes)


def decided(
    name: str, recipe: str, wrong: int, speedup: float, *, parent: str = BASELINE, accepted: bool = True
) -> Candidate:
    right = np.ones(ROWS, bool)
    right[:wrong] = False
    gate = accuracy_gate(np.ones(ROWS, bool), right, 0.02)
    cost = Cost(1, 1.0 / speedup, 2.0, speedup, 8, 1000.0, 1.0, speedup)
    made = Candidate(name, recipe, parent).made(Path(name))
    return made.measured(gate=gate, cost=cost, baseline_cost=cost, size_bytes=1000).decided(accepted, "")


def test_a_candidate_that_is_not_faster_is_rejected_whatever_its_accuracy() -> None:
    accepted, reason = acceptance(PASS, replace(FAST, speedup=0.98), 0.3, 0.0, spec())
    assert not accepted
    assert "not faster" in reason


def test_with_size_as_the_goal_speed_may_stand_still_but_bytes_must_fall() -> None:
    size = spec(target={"minimize": "size"})
    assert acceptance(PASS, replace(FAST, speedup=0.95), 0.3, 0.0, size)[0]
    assert "not smaller" in acceptance(PASS, FAST, 1.0, 0.0, size)[1]
    assert "slower" in acceptance(PASS, replace(FAST, speedup=0.5), 0.3, 0.0, size)[1]


def test_cost_is_compared_at_the_best_batch_size() -> None:
    cost = spec(target={"minimize": "cost"})
    assert acceptance(PASS, replace(FAST, speedup=0.9), 0.3, 0.0, cost)[0]
    assert not acceptance(PASS, replace(FAST, cost_ratio=0.9), 0.3, 0.0, cost)[0]


def test_a_class_that_falls_behind_rejects_a_candidate_whose_mean_is_fine() -> None:
    accepted, reason = acceptance(PASS, FAST, 0.3, 0.2, spec(max_class_drop=0.1))
    assert not accepted
    assert "one class" in reason


def test_what_an_undecided_gate_means_is_the_users_choice() -> None:
    assert UNSURE.verdict == "inconclusive"
    assert acceptance(UNSURE, FAST, 0.3, 0.0, spec(on_inconclusive="accept_point_estimate"))[0]
    accepted, reason = acceptance(UNSURE, FAST, 0.3, 0.0, spec(on_inconclusive="keep_baseline"))
    assert not accepted
    assert "rows would decide" in reason


def test_a_budget_of_zero_is_refused_with_the_reason() -> None:
    with pytest.raises(ValidationError, match="cannot be proved by any number of samples"):
        BudgetSpec(max_drop=0.0)


def test_of_candidates_that_cost_the_same_the_most_accurate_is_chosen() -> None:
    near = decided("near", "prune", 5, 6.6)
    assert choose_best([decided("fast", "prune", 20, 7.0), near, decided("slow", "prune", 0, 3.0)], SPEC) == near
    assert choose_best([decided("fast", "prune", 20, 7.0, accepted=False)], SPEC) is None


def test_a_dense_network_that_is_more_accurate_at_equal_cost_is_recommended_and_chosen() -> None:
    candidates = [decided("prune75", "prune", 20, 7.0), decided("dense25", DENSE, 10, 6.9)]
    found = compare_with_dense(candidates, choose_best(candidates, SPEC), SPEC)
    assert found is not None
    assert (found["ours"], found["rival"], found["recommended"]) == ("prune75", "dense25", "dense25")
    assert "the rival is more accurate at equal cost" in found["sentence"]
    assert choose_best(candidates, SPEC) == candidates[1]


def test_a_dense_network_that_is_not_more_accurate_changes_nothing() -> None:
    candidates = [decided("prune75", "prune", 5, 7.0), decided("dense25", DENSE, 10, 6.9)]
    found = compare_with_dense(candidates, choose_best(candidates, SPEC), SPEC)
    assert found is not None
    assert found["recommended"] == "prune75"
    assert "not more accurate" in found["sentence"]


def test_a_dense_network_just_outside_the_choice_is_still_recommended() -> None:
    """Costs: 1 / 7.0 is the least, 1 / 6.5 is within 10 % of it, 1 / 6.0 is within 10 % of the chosen one only."""
    chosen = decided("prune75", "prune", 10, 6.5)
    candidates = [decided("prune88", "prune", 30, 7.0), chosen, decided("dense25", DENSE, 0, 6.0)]
    assert choose_best(candidates, SPEC) == chosen
    found = compare_with_dense(candidates, chosen, SPEC)
    assert found is not None
    assert found["recommended"] == "dense25"


def test_a_dense_network_of_another_cost_is_told_with_its_ratio_and_quantized_ones_are_compared_too() -> None:
    slow = decided("dense50", DENSE, 0, 3.5)
    child = decided("dense50_int8", "int8_static", 0, 3.6, parent="dense50")
    candidates = [decided("prune75", "prune", 5, 7.0), slow, child]
    found = compare_with_dense(candidates, choose_best(candidates, SPEC), SPEC)
    assert found is not None
    assert found["rival"] == "dense50_int8"
    assert "at 1.94 times the cost" in found["sentence"]
    assert found["recommended"] == "prune75"


def test_without_a_dense_network_or_without_another_accepted_one_there_is_no_comparison() -> None:
    assert compare_with_dense([decided("prune75", "prune", 5, 7.0)], None, SPEC) is None
    rejected = decided("prune75", "prune", 5, 7.0, accepted=False)
    assert compare_with_dense([rejected, decided("dense25", DENSE, 0, 7.0)], None, SPEC) is None
