"""Columns whose values or words have moved between two tables.

Invariant: a finding follows from the values alone. Number columns by the population stability index over deciles with
the Kolmogorov-Smirnov distance, text columns by the same index over words.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from cluster.bundle.transforms import Texts, Values
from trainers.data.quality.findings import Finding
from trainers.data.quality.rules import CLASSES_MAX, word_counts

PSI_SHIFTED = 0.2  # usual reading of the population stability index: above it the population has moved
DRIFT_ROWS_MIN = 100


def find_drift(values: Mapping[str, Values], there: Mapping[str, Values]) -> list[Finding | None]:
    """`there`: the other table's columns, each of the same kind."""
    from scipy.stats import ks_2samp

    found: list[Finding | None] = []
    for name, column in values.items():
        other = there[name]
        if isinstance(column, Texts) or isinstance(other, Texts):
            assert isinstance(column, Texts)
            assert isinstance(other, Texts)
            found.append(_words_moved(name, word_counts(column), word_counts(other)))
            continue
        a, b = column[np.isfinite(column)], other[np.isfinite(other)]
        if min(len(a), len(b)) < DRIFT_ROWS_MIN:
            continue
        psi = stability_index(a, b)
        if psi > PSI_SHIFTED:
            distance = float(ks_2samp(a, b).statistic)
            text = f"it differs between training and test: PSI {psi:.2f}, Kolmogorov-Smirnov {distance:.2f}"
            evidence = {"psi": psi, "ks": distance, "medians": [float(np.median(a)), float(np.median(b))]}
            found.append(Finding("drift", "warning", name, text, "look at how the files were made", evidence))
    return found


def _words_moved(name: str, here: dict[str, int], there: dict[str, int]) -> Finding | None:
    """PSI over the words, where they are few; the words that moved most are the evidence."""
    rows, others = sum(here.values()), sum(there.values())
    if min(rows, others) < DRIFT_ROWS_MIN or len(here) > CLASSES_MAX:
        return None
    words = sorted({*here, *there})
    a = np.maximum([here.get(word, 0) for word in words], 0.5) / rows
    b = np.maximum([there.get(word, 0) for word in words], 0.5) / others
    parts = (b - a) * np.log(b / a)
    psi = float(parts.sum())
    if psi <= PSI_SHIFTED:
        return None
    moved = {words[at]: [float(a[at]), float(b[at])] for at in np.argsort(-parts, kind="stable")[:3]}
    return Finding("drift", "warning", name, f"its words differ between training and test: PSI {psi:.2f}",
                   "look at how the files were made", {"psi": psi, "shares": moved})  # fmt: skip


def stability_index(a: np.ndarray, b: np.ndarray, bins: int = 10) -> float:
    """Population stability index over the deciles of `a`; empty bins count as half a row."""
    edges = np.unique(np.quantile(a, np.linspace(0, 1, bins + 1)[1:-1]))
    shares = []
    for values in (a, b):
        counts = np.bincount(np.searchsorted(edges, values, side="right"), minlength=len(edges) + 1)
        shares.append(np.maximum(counts, 0.5) / len(values))
    return float(((shares[1] - shares[0]) * np.log(shares[1] / shares[0])).sum())
