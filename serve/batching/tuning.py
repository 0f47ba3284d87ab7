"""`batching: auto`: the rows of a batch and the wait for company, from the engine's own latency curve at load time.

Invariant: `choose` is a pure function of the curve. Rows double until a call stops gaining rows a second or exceeds
the budget; the wait is a share of what one row alone costs, so that waiting never dominates a request.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from cluster.spec.serve import ROWS_AUTO_MAX

GAIN_MIN = 1.05  # doubling a batch must bring 5 % more rows a second, or it only adds latency
ROWS_MAX = ROWS_AUTO_MAX
CALLS = 5  # of each size; the median of five ignores two disturbances
WAIT_SHARE = 0.5
WAIT_MAX_S = 0.005
CALL_BUDGET_S = 0.05  # a batch that takes longer keeps everyone else waiting as long


@dataclass(frozen=True)
class Point:
    """What a call with this many rows takes."""

    rows: int
    seconds: float


def measure(call: Callable[[int], object], *, rows_max: int = ROWS_MAX) -> list[Point]:
    """The curve at 1, 2, 4, … rows; stops early when a call exceeds twice the budget. Blocks."""
    points: list[Point] = []
    rows = 1
    while rows <= rows_max and not (points and points[-1].seconds > 2 * CALL_BUDGET_S):
        call(rows)  # first-time work of this size
        durations = []
        for _ in range(CALLS):
            started = time.perf_counter()
            call(rows)
            durations.append(time.perf_counter() - started)
        points.append(Point(rows, statistics.median(durations)))
        rows *= 2
    return points


def choose(points: Sequence[Point]) -> tuple[int, float]:
    """`(max_rows, max_wait_s)` for a curve that starts at one row."""
    best = points[0]
    for point in points[1:]:
        gain = (point.rows / point.seconds) / (best.rows / best.seconds)
        if point.seconds > CALL_BUDGET_S:
            break
        if gain >= GAIN_MIN:
            best = point
    return best.rows, min(WAIT_SHARE * points[0].seconds, WAIT_MAX_S)
