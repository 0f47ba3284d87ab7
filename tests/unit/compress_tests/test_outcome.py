"""What a climbed ladder means: the choice, the rival's sentence, and words for speed."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from cluster.spec.compress import CompressSpec
from cluster.telemetry.events import ListSink
from trainers.compress.gate import accuracy_gate
from trainers.compress.judge import Baseline, Judgment
from trainers.compress.ladder import BASELINE, DENSE, Ladder
from trainers.compress.measure import Cost
from trainers.compress.outcome import best_of, headline, rival_facts, speed_words
from trainers.compress.rows import CompressionRows

ROWS = 2000


def judged(name: str, recipe: str, wrong: int, speedup: float, *, parent: str = BASELINE, accepted: bool = True) -> Any:
    right = np.ones(ROWS, bool)
    right[:wrong] = False
    gate = accuracy_gate(np.ones(ROWS, bool), right, 0.02)
    cost = Cost(1, 1.0 / speedup, 2.0, speedup, 8, 1000.0, 1.0, speedup)
    return Judgment(name, recipe, parent, Path(name), "fp32", accepted, "", gate, cost, cost, 1000)


def climbed(*judgments: Judgment) -> Ladder:
    rows = CompressionRows("classification", {}, {}, np.zeros(ROWS, np.int64), 2)
    baseline = Baseline(Path("x"), np.zeros((ROWS, 2)), 4000)
    return Ladder(CompressSpec(), rows, Path("p"), baseline, Path("c"), ListSink(), judgments=list(judgments))


@pytest.mark.parametrize(("speedup", "words"), [(2.34, "2.3× faster"), (0.9, "0.90× the speed")])
def test_a_ratio_below_one_is_not_called_faster(speedup: float, words: str) -> None:
    assert speed_words(speedup) == words


@pytest.mark.parametrize("speedup", [0.97, 1.0, 1.04])
def test_what_two_measurements_differ_by_is_called_equal(speedup: float) -> None:
    assert speed_words(speedup) == "about equally fast"


def test_of_candidates_that_cost_the_same_the_most_accurate_is_chosen() -> None:
    ladder = climbed(judged("fast", "prune", 20, 7.0), judged("near", "prune", 5, 6.6), judged("slow", "prune", 0, 3.0))
    chosen = best_of(ladder)
    assert chosen is not None
    assert chosen.name == "near"
    assert headline(ladder, chosen).startswith("near: 4.0× smaller, 6.6× faster")


def test_a_rival_that_is_more_accurate_at_equal_cost_is_recommended_and_chosen() -> None:
    ladder = climbed(judged("prune75", "prune", 20, 7.0), judged("dense25", DENSE, 10, 6.9))
    found = rival_facts(ladder, best_of(ladder))
    assert found is not None
    assert (found["ours"], found["rival"], found["recommended"]) == ("prune75", "dense25", "dense25")
    assert "the rival is more accurate at equal cost" in found["sentence"]
    chosen = best_of(ladder)
    assert chosen is not None
    assert chosen.name == "dense25"


def test_a_rival_that_is_not_more_accurate_changes_nothing() -> None:
    ladder = climbed(judged("prune75", "prune", 5, 7.0), judged("dense25", DENSE, 10, 6.9))
    found = rival_facts(ladder, best_of(ladder))
    assert found is not None
    assert found["recommended"] == "prune75"
    assert "not more accurate" in found["sentence"]


def test_a_rival_just_outside_the_choice_is_still_recommended() -> None:
    """Costs: 1 / 7.0 is the least, 1 / 6.5 is within 10 % of it, 1 / 6.0 is within 10 % of the chosen one only."""
    ladder = climbed(
        judged("prune88", "prune", 30, 7.0), judged("prune75", "prune", 10, 6.5), judged("dense25", DENSE, 0, 6.0)
    )
    chosen = best_of(ladder)
    assert chosen is not None
    assert chosen.name == "prune75"
    found = rival_facts(ladder, chosen)
    assert found is not None
    assert found["recommended"] == "dense25"


def test_a_rival_of_another_cost_is_told_with_its_ratio_and_quantized_rivals_are_rivals_too() -> None:
    slow = judged("dense50", DENSE, 0, 3.5)
    child = judged("dense50_int8", "int8_static", 0, 3.6, parent="dense50")
    found = rival_facts(ladder := climbed(judged("prune75", "prune", 5, 7.0), slow, child), best_of(ladder))
    assert found is not None
    assert found["rival"] == "dense50_int8"
    assert "at 1.94 times the cost" in found["sentence"]
    assert found["recommended"] == "prune75"


def test_without_a_rival_or_without_an_accepted_network_there_is_no_comparison() -> None:
    assert rival_facts(climbed(judged("prune75", "prune", 5, 7.0)), None) is None
    rejected = judged("prune75", "prune", 5, 7.0, accepted=False)
    assert rival_facts(climbed(rejected, judged("dense25", DENSE, 0, 7.0)), None) is None
