"""The accuracy gate: may this candidate replace the baseline? PASS, FAIL or INCONCLUSIVE, from a paired interval.

Both models answer the same N rows. For classification only the rows where exactly one of the two is right count:
`lost` (baseline right, candidate wrong) and `gained` (the other way round). delta = (gained - lost) / N,
d = (gained + lost) / N, and with SE = sqrt(d / N) the interval is delta ± 1.96 SE (two-sided 95 %; the exact variance
is (d - delta²) / N, so this is slightly wide). Below 25 discordant rows the normal approximation is poor (the usual
limit of McNemar's chi-square test), and the bounds come from the exact distribution of gained - lost, maximized over
the unknown discordance rate within its own 99.9 % interval (Berger and Boos 1994).

Invariant: PASS only if the lower bound is at or above -max_drop, FAIL only if the upper bound is below it; else
INCONCLUSIVE with the number of rows that would decide. A pure function of the two models' scores.

Covered: accuracy; any per-row score (R² by squared errors). Not covered: metrics that are no mean over rows (ROC AUC).
"""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass
from typing import Any, Literal

import numpy as np
from scipy import stats

from cluster.errors import DataError
from trainers.compress.rows import CompressionRows

Verdict = Literal["pass", "fail", "inconclusive"]
CONFIDENCE_Z = 1.959963984540054  # two-sided 95 %
TAIL = 0.025
EXACT_BELOW = 25  # discordant rows; McNemar's chi-square is not used below it
NUISANCE_TAIL = 0.0005  # each side of the discordance rate's interval; added to the p-value
NUISANCE_GRID = 41  # values of the rate that are tried; the p-value is smooth in it
SCALE = 1.2  # steps in which the needed number of rows is searched
SCALE_STEPS = 12  # 1.2**12 is above 8; the start is never further off
BISECTIONS = 22  # 2 / 2**22 is below a millionth


@dataclass(frozen=True)
class GateResult:
    """What the gate found, on one split."""

    verdict: Verdict
    metric: str
    max_drop: float
    num_samples: int
    baseline: float
    candidate: float
    delta: float
    """candidate - baseline: negative is a loss."""
    low: float
    high: float
    method: Literal["exact", "normal"]
    gained: int | None = None
    lost: int | None = None
    samples_needed: int | None = None
    """Rows that would decide if the rates stay as they are; null when decided, or when no number would do."""

    @property
    def drop(self) -> float:
        return -self.delta

    def sentence(self) -> str:
        """One line for tables and reasons."""
        head = (
            f"{self.metric} {self.baseline:.4f} -> {self.candidate:.4f}, change {self.delta:+.4f} "
            f"[{self.low:+.4f}, {self.high:+.4f}] on {self.num_samples:,} rows, budget {self.max_drop:g}"
        )
        if self.verdict == "inconclusive" and self.samples_needed:
            return f"{head}; about {self.samples_needed:,} rows would decide"
        return head

    def to_dict(self) -> dict[str, Any]:
        return {**asdict(self), "drop": self.drop}


def accuracy_gate(baseline_right: np.ndarray, candidate_right: np.ndarray, max_drop: float) -> GateResult:
    """Gate on accuracy.

    Args:
        baseline_right: (N,) bool, the baseline's answer is the target.
        candidate_right: (N,) bool, the same rows in the same order.
        max_drop: largest accepted loss, absolute, above 0.

    Raises:
        DataError: no rows, or different numbers of rows.
    """
    rows = _same_rows(baseline_right, candidate_right)
    lost = int((baseline_right & ~candidate_right).sum())
    gained = int((~baseline_right & candidate_right).sum())
    discordant = lost + gained
    delta = (gained - lost) / rows
    if discordant < EXACT_BELOW:
        low, high, method = *exact_bounds(gained, lost, rows), "exact"
    else:
        low, high = normal_bounds(delta, discordant / rows, rows)
        method = "normal"
    verdict = verdict_of(low, high, max_drop)
    needed = None
    if verdict == "inconclusive":
        needed = samples_needed(delta, discordant / rows, max_drop, rows)
    return GateResult(
        verdict=verdict,
        metric="accuracy",
        max_drop=max_drop,
        num_samples=rows,
        baseline=float(baseline_right.mean()),
        candidate=float(candidate_right.mean()),
        delta=delta,
        low=low,
        high=high,
        method="exact" if method == "exact" else "normal",
        gained=gained,
        lost=lost,
        samples_needed=needed,
    )


def score_gate(baseline: np.ndarray, candidate: np.ndarray, max_drop: float, *, metric: str) -> GateResult:
    """Gate on the mean of any per-row score where more is better: (N,) float each. A paired Student interval."""
    rows = _same_rows(baseline, candidate)
    difference = candidate.astype(np.float64) - baseline.astype(np.float64)
    delta = float(difference.mean())
    spread = float(difference.std(ddof=1)) if rows > 1 else math.inf
    half = float(stats.t.ppf(1 - TAIL, max(rows - 1, 1))) * spread / math.sqrt(rows) if spread else 0.0
    low, high = (delta - half, delta + half) if math.isfinite(half) else (-1e9, 1e9)  # JSON has no infinity
    verdict = verdict_of(low, high, max_drop)
    margin = max_drop + delta
    needed = math.ceil((CONFIDENCE_Z * spread / margin) ** 2) if verdict == "inconclusive" and margin else None
    return GateResult(
        verdict=verdict,
        metric=metric,
        max_drop=max_drop,
        num_samples=rows,
        baseline=float(np.mean(baseline)),
        candidate=float(np.mean(candidate)),
        delta=delta,
        low=low,
        high=high,
        method="normal",
        samples_needed=needed,
    )


def gate_outputs(baseline: np.ndarray, candidate: np.ndarray, rows: CompressionRows, max_drop: float) -> GateResult:
    """The gate of the rows' task on (N, C) outputs: accuracy for classification, R² for regression."""
    targets = rows.gate_targets
    if rows.task == "regression":
        return score_gate(r2_scores(baseline, targets), r2_scores(candidate, targets), max_drop, metric="r2")
    return accuracy_gate(baseline.argmax(1) == targets, candidate.argmax(1) == targets, max_drop)


def r2_scores(values: np.ndarray, targets: np.ndarray) -> np.ndarray:
    """(N,) per-row scores whose mean is R²: 1 - e² / variance of the targets. Raises DataError for constant targets."""
    targets = targets.astype(np.float64)
    variance = float(targets.var())
    if not variance:
        raise DataError(
            "Cannot gate on R²",
            found="all targets are equal",
            rule="R² needs targets that vary",
            remedy="Use other rows.",
        )
    return 1.0 - (values.reshape(len(targets), -1)[:, 0].astype(np.float64) - targets) ** 2 / variance


def verdict_of(low: float, high: float, max_drop: float) -> Verdict:
    """The rule on the interval of delta."""
    if low >= -max_drop:
        return "pass"
    return "fail" if high < -max_drop else "inconclusive"


def normal_bounds(delta: float, discordance: float, rows: int) -> tuple[float, float]:
    """delta ± 1.96 sqrt(d / N)."""
    half = CONFIDENCE_Z * math.sqrt(discordance / rows)
    return delta - half, delta + half


def exact_bounds(gained: int, lost: int, rows: int) -> tuple[float, float]:
    """95 % interval of the true change from the exact distribution of gained - lost."""
    low = _lower_bound(gained, lost, rows)
    return low, -_lower_bound(lost, gained, rows)


def samples_needed(delta: float, discordance: float, max_drop: float, rows: int) -> int | None:
    """Rows that would decide if the rates stay: N = d (1.96 / (budget - drop))², or by exact bounds for few rows."""
    margin = max_drop + delta
    if abs(margin) < 1e-9:
        return None
    by_margin = math.ceil(discordance * (CONFIDENCE_Z / margin) ** 2)
    if discordance * by_margin >= EXACT_BELOW:
        return max(by_margin, rows + 1)
    tried = max(by_margin, rows, math.ceil(math.log(TAIL) / math.log1p(-max_drop)) if max_drop < 1 else 1)
    for _ in range(SCALE_STEPS):
        tried = math.ceil(tried * SCALE)
        lost, gained = ((discordance - delta) / 2 * tried, (discordance + delta) / 2 * tried)
        low, high = exact_bounds(round(gained), round(lost), tried)
        if verdict_of(low, high, max_drop) != "inconclusive":
            return tried
    return None


def _same_rows(first: np.ndarray, second: np.ndarray) -> int:
    if len(first) != len(second) or not len(first):
        raise DataError(
            "Cannot gate the candidate",
            found=f"{len(first)} and {len(second)} answers",
            rule="baseline and candidate answer the same rows, at least one",
            remedy="Make the gate split larger (data.split.gate).",
        )
    return len(first)


def _lower_bound(gained: int, lost: int, rows: int) -> float:
    """The smallest change that is not refuted at 2.5 % by what was seen, by bisection on [-1, estimate]."""
    discordant = gained + lost
    rates = stats.beta.ppf([NUISANCE_TAIL, 1 - NUISANCE_TAIL], [discordant or 1, discordant + 1],
                           [rows - discordant + 1, (rows - discordant) or 1])  # fmt: skip
    lowest = 0.0 if discordant == 0 else float(rates[0])
    highest = 1.0 if discordant == rows else float(rates[1])
    refuted, accepted = -1.0, (gained - lost) / rows
    for _ in range(BISECTIONS):
        middle = (refuted + accepted) / 2
        if _p_value(middle, gained - lost, rows, lowest, highest) <= TAIL:
            refuted = middle
        else:
            accepted = middle
    return refuted


def _p_value(delta: float, seen: int, rows: int, lowest: float, highest: float) -> float:
    """Largest P(gained - lost >= seen) over discordance rates in [lowest, highest] that allow this delta."""
    lowest = max(lowest, abs(delta))
    if lowest > highest:  # such a change needs more discordant rows than the interval allows
        return 2 * NUISANCE_TAIL
    rate = np.linspace(lowest, highest, NUISANCE_GRID)[:, None]
    most = int(stats.binom.isf(1e-9, rows, highest)) + 1
    count = np.arange(most + 1)[None, :]
    share = np.clip((rate + delta) / (2 * rate), 0.0, 1.0)  # of discordant rows that are gained
    needed = np.ceil((count + seen) / 2)
    tail = stats.binom.sf(needed - 1, count, share)
    p = (stats.binom.pmf(count, rows, rate) * tail).sum(axis=1)
    return float(p.max()) + 2 * NUISANCE_TAIL
