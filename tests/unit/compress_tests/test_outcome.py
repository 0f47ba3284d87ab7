"""The headline: a slower candidate is never called faster."""

from __future__ import annotations

from trainers.compress.outcome import speed_words


def test_a_ratio_below_one_is_not_called_faster() -> None:
    assert speed_words(2.34) == "2.3× faster"
    assert speed_words(0.9) == "0.90× the speed"
    for equal in (0.97, 1.0, 1.04):
        assert speed_words(equal) == "about equally fast"
