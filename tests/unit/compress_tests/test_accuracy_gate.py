"""The gate's statistics: bounds that hold, verdicts that follow from them, and the number of rows that would decide."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.metrics import r2_score

from cluster.errors import DataError
from trainers.compress.accuracy_gate import (
    EXACT_BELOW,
    accuracy_gate,
    exact_bounds,
    normal_bounds,
    r2_scores,
    samples_needed,
    score_gate,
    verdict_of,
)


def answers(rows: int, lost: int, gained: int, both_wrong: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """(baseline right, candidate right) with so many discordant rows."""
    baseline = np.ones(rows, bool)
    candidate = np.ones(rows, bool)
    candidate[:lost] = False
    baseline[lost : lost + gained] = False
    baseline[lost + gained : lost + gained + both_wrong] = False
    candidate[lost + gained : lost + gained + both_wrong] = False
    return baseline, candidate


def test_the_interval_of_many_discordant_rows_is_the_published_one() -> None:
    # docs/compress.md: budget 1 pp, drop 0.2 pp, d 4 %: N = 0.04 (1.96 / 0.008)² = 2,401
    low, high = normal_bounds(-0.002, 0.04, 1000)
    assert (high - low) / 2 == pytest.approx(0.0124, abs=1e-4)
    assert samples_needed(-0.002, 0.04, 0.01, 1000) == pytest.approx(2401, abs=2)


def test_equal_answers_on_few_rows_prove_nothing() -> None:
    result = accuracy_gate(*answers(100, 0, 0), 0.01)
    assert result.method == "exact"
    assert result.verdict == "inconclusive"
    assert result.low < -0.01
    assert result.samples_needed is not None
    assert accuracy_gate(*answers(result.samples_needed, 0, 0), 0.01).verdict == "pass"


def test_the_needed_number_of_rows_decides_when_the_rates_stay() -> None:
    result = accuracy_gate(*answers(1000, 22, 20), 0.01)
    assert result.verdict == "inconclusive"
    assert result.samples_needed is not None
    assert 2000 < result.samples_needed < 3000
    assert accuracy_gate(*answers(2000, 44, 40), 0.01).verdict == "inconclusive"
    assert accuracy_gate(*answers(3000, 66, 60), 0.01).verdict == "pass"


@pytest.mark.parametrize(
    ("lost", "gained", "verdict"), [(12, 10, "pass"), (80, 10, "fail"), (40, 25, "inconclusive"), (0, 40, "pass")]
)
def test_verdicts_on_two_thousand_rows(lost: int, gained: int, verdict: str) -> None:
    assert accuracy_gate(*answers(2000, lost, gained), 0.01).verdict == verdict


def test_rows_that_both_get_wrong_do_not_matter() -> None:
    assert accuracy_gate(*answers(500, 3, 2), 0.05).low == accuracy_gate(*answers(500, 3, 2, both_wrong=100), 0.05).low


@pytest.mark.parametrize(("drop_rate", "gain_rate"), [(0.01, 0.0), (0.02, 0.01), (0.005, 0.005)])
def test_a_candidate_that_is_too_bad_passes_in_at_most_one_of_forty_draws(drop_rate: float, gain_rate: float) -> None:
    rng, rows, draws = np.random.default_rng(7), 400, 300
    true_delta = gain_rate - drop_rate
    drawn = rng.multinomial(rows, [drop_rate, gain_rate, 1 - drop_rate - gain_rate], draws)
    pairs, counts = np.unique(drawn[drawn[:, 0] + drawn[:, 1] < EXACT_BELOW, :2], axis=0, return_counts=True)
    bounds = [exact_bounds(int(gained), int(lost), rows) for lost, gained in pairs]
    wrong = sum(int(n) for n, (low, high) in zip(counts, bounds, strict=True) if not low <= true_delta <= high)
    assert wrong / draws <= 0.05 + 2 * np.sqrt(0.05 * 0.95 / draws)


@settings(max_examples=25, deadline=None)
@given(st.integers(1, 300), st.data())
def test_exact_bounds_hold_the_estimate_and_mirror(rows: int, data: st.DataObject) -> None:
    lost = data.draw(st.integers(0, min(rows, 12)))
    gained = data.draw(st.integers(0, min(rows - lost, 12)))
    low, high = exact_bounds(gained, lost, rows)
    assert -1.0 <= low <= (gained - lost) / rows <= high <= 1.0
    mirrored = exact_bounds(lost, gained, rows)
    assert mirrored == (-high, -low)


def test_the_exact_and_the_normal_interval_agree_where_they_meet() -> None:
    exact, normal = exact_bounds(12, 12, 4000), normal_bounds(0.0, 24 / 4000, 4000)
    assert 1.0 <= exact[0] / normal[0] <= 1.5  # the exact one also covers what is not known about the rate


def test_verdict_follows_from_the_bounds_alone() -> None:
    assert verdict_of(-0.01, 0.5, 0.01) == "pass"
    assert verdict_of(-0.5, -0.0101, 0.01) == "fail"
    assert verdict_of(-0.0101, -0.01, 0.01) == "inconclusive"


def test_regression_is_gated_on_r2_per_row() -> None:
    rng = np.random.default_rng(0)
    targets = rng.normal(size=400).astype(np.float32)
    good = targets + rng.normal(scale=0.1, size=400).astype(np.float32)
    bad = targets + rng.normal(scale=0.6, size=400).astype(np.float32)
    scores = {name: r2_scores(values[:, None], targets) for name, values in (("good", good), ("bad", bad))}
    assert score_gate(scores["good"], scores["good"], 0.01, metric="r2").verdict == "pass"
    assert score_gate(scores["good"], scores["bad"], 0.01, metric="r2").verdict == "fail"
    assert scores["good"].mean() == pytest.approx(r2_score(targets, good), rel=1e-4)


def test_constant_targets_have_no_r2() -> None:
    with pytest.raises(DataError, match="all targets are equal"):
        r2_scores(np.zeros((3, 1)), np.ones(3))


@pytest.mark.parametrize(("first", "second"), [(0, 0), (3, 4)])
def test_no_rows_and_unequal_rows_are_refused(first: int, second: int) -> None:
    with pytest.raises(DataError, match="same rows"):
        accuracy_gate(np.ones(first, bool), np.ones(second, bool), 0.01)
