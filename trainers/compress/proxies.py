"""Cheap measures of how far a candidate's outputs are from its parent's, on a few calibration rows.

Source: Nagel et al., "A White Paper on Neural Network Quantization" (2021) for SQNR as a proxy.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from cluster.spec.compress import ProxySpec

SQNR_MAX_DB = 200.0  # equal outputs; JSON has no infinity


@dataclass(frozen=True)
class Proxies:
    """Distances between two sets of outputs of the same rows."""

    rows: int
    sqnr_db: float
    """Signal-to-noise ratio of the outputs: 10 log10(Σ parent² / Σ (parent - candidate)²); a quantity's about its
    mean."""
    kl: float | None
    """Mean KL divergence of the classes' probabilities; null for regression."""
    agreement: float | None
    """Share of rows with the same class; null for regression."""

    def hopeless(self, spec: ProxySpec) -> str | None:
        """Why this candidate is not worth measuring, or None."""
        if self.sqnr_db <= -SQNR_MAX_DB:
            return f"NaN or infinite outputs on the {self.rows} rows of the first look"
        if self.sqnr_db < spec.min_sqnr_db:
            return f"signal-to-noise ratio {self.sqnr_db:.1f} dB on {self.rows} rows, below {spec.min_sqnr_db:g} dB"
        if self.agreement is not None and self.agreement < spec.min_agreement:
            return f"agrees with the float graph on {self.agreement:.0%} of {self.rows} rows only"
        return None


def compare_outputs(parent: np.ndarray, candidate: np.ndarray, *, classification: bool) -> Proxies:
    """Compare (N, C) outputs of the same rows; a candidate with NaN has the lowest ratio."""
    parent, candidate = parent.astype(np.float64), candidate.astype(np.float64)
    if not np.isfinite(candidate).all():
        return Proxies(len(parent), -SQNR_MAX_DB, None, 0.0 if classification else None)
    noise = float(((parent - candidate) ** 2).sum())
    level = 0.0 if classification else parent.mean()  # 200,000 ± 3,000 has a signal of 3,000
    signal = float(((parent - level) ** 2).sum())
    sqnr = (
        SQNR_MAX_DB
        if noise == 0
        else float(np.clip(10 * np.log10(max(signal, 1e-300) / noise), 1 - SQNR_MAX_DB, SQNR_MAX_DB))
    )
    if not classification:
        return Proxies(len(parent), sqnr, None, None)
    divergence = (_softmax(parent) * (_log_softmax(parent) - _log_softmax(candidate))).sum(axis=1).mean()
    agreement = float((parent.argmax(1) == candidate.argmax(1)).mean())
    return Proxies(len(parent), sqnr, max(0.0, float(divergence)), agreement)


def _log_softmax(logits: np.ndarray) -> np.ndarray:
    shifted = logits - logits.max(axis=1, keepdims=True)
    return shifted - np.log(np.exp(shifted).sum(axis=1, keepdims=True))


def _softmax(logits: np.ndarray) -> np.ndarray:
    return np.exp(_log_softmax(logits))
