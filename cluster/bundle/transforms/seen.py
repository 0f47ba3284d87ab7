"""What training saw of each raw column, so that an endpoint can name what training did not.

Invariant: the facts come from the training rows alone and change no tensor; a column without facts (free text, more
than `WORDS_MAX` different words, a bundle of before) is never said to be unseen.

A number or date is far outside when it lies further beyond the smallest or largest training value than half the
distance between these two (`REACH`). Of a normal column with 100 training rows that is about one value in 100,000.
"""

from __future__ import annotations

from functools import cached_property
from typing import Annotated, Any, Literal

import numpy as np
from pydantic import Field

from cluster.bundle.transforms.columns import Texts, Values
from cluster.spec.base import StrictSpec

REACH = 0.5  # of the training range; a value up to there is extrapolated without a word
WORDS_MAX = 1 << 16  # as many as a pass over a large table keeps (trainers/data/read/column_scan.py)


class SeenNumbers(StrictSpec):
    """A number or date column."""

    kind: Literal["numbers"] = "numbers"
    low: Annotated[float, Field(allow_inf_nan=False)]
    high: Annotated[float, Field(allow_inf_nan=False)]

    def strange(self, values: Values) -> np.ndarray:
        """(N,) bool; a missing value is not strange."""
        numbers = np.asarray(values)
        reach = REACH * (self.high - self.low)
        return np.asarray((numbers < self.low - reach) | (numbers > self.high + reach))

    @property
    def takes_flags(self) -> bool:
        """Whether true and false are 1 and 0 here: training had no other values."""
        return {self.low, self.high} <= {0.0, 1.0}


class SeenWords(StrictSpec):
    """A category column."""

    kind: Literal["words"] = "words"
    words: tuple[str, ...]

    @cached_property
    def _known(self) -> frozenset[str]:
        return frozenset(self.words)

    def strange(self, values: Values) -> np.ndarray:
        """(N,) bool; a missing value is not strange."""
        assert isinstance(values, Texts)
        unknown = np.array([*(word not in self._known for word in values.words), False])
        return np.asarray(unknown[values.codes])


SeenColumn = Annotated[SeenNumbers | SeenWords, Field(discriminator="kind")]


def seen_numbers(low: float, high: float) -> SeenNumbers | None:
    """None for a column without any value."""
    return SeenNumbers(low=float(low), high=float(high)) if np.isfinite([low, high]).all() else None


def seen_words(words: Any) -> SeenWords | None:
    """None for more words than are kept."""
    kept = tuple(sorted(words))
    return SeenWords(words=kept) if len(kept) <= WORDS_MAX else None
