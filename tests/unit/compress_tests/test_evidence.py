"""The stage's line for the display: words for speed, sizes against the float graph."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from cluster.spec.compress import CompressSpec
from cluster.telemetry.events import ListSink
from tests.unit.compress_tests.test_decision import ROWS, decided
from trainers.compress.candidate import Baseline
from trainers.compress.evidence import headline, speed_words
from trainers.compress.recipe_search import RecipeSearch
from trainers.compress.rows import CompressionRows


@pytest.mark.parametrize(("speedup", "words"), [(2.34, "2.3× faster"), (0.9, "0.90× the speed")])
def test_a_ratio_below_one_is_not_called_faster(speedup: float, words: str) -> None:
    assert speed_words(speedup) == words


@pytest.mark.parametrize("speedup", [0.97, 1.0, 1.04])
def test_what_two_measurements_differ_by_is_called_equal(speedup: float) -> None:
    assert speed_words(speedup) == "about equally fast"


def test_the_headline_compares_the_chosen_candidate_with_the_float_graph() -> None:
    rows = CompressionRows("classification", {}, {}, np.zeros(ROWS, np.int64), 2)
    baseline = Baseline(Path("x"), np.zeros((ROWS, 2)), 4000)
    search = RecipeSearch(CompressSpec(), rows, Path("p"), baseline, Path("c"), ListSink())
    assert headline(search, decided("near", "prune", 5, 6.6)).startswith("near: 4.0× smaller, 6.6× faster")
