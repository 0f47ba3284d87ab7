"""The bisection for the fewest float nodes."""

from __future__ import annotations

import pytest

from trainers.compress.exclude import smallest_passing


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
