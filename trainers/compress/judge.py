"""One candidate against the baseline: quality with its interval, speed, size, and the reason of the decision.

Invariant: a candidate is accepted only if its outputs are finite, the gate does not fail it, and it is faster than the
baseline on the target; every rejection carries its reason.

Covered: ONNX files on the CPU. Not covered: which candidates are tried (ladder.py).
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from cluster.bundle.manifest import Variant
from cluster.spec.compress import CompressSpec
from trainers.compress.gate import GateResult, accuracy_gate, r2_scores, score_gate
from trainers.compress.measure import Latency, paired_latency, predict_graph
from trainers.compress.rows import CompressionRows
from trainers.export.onnx import file_bytes

FASTER_THAN = 1.0  # times the baseline; a candidate that saves no time costs accuracy for nothing


@dataclass(frozen=True)
class Baseline:
    """The float graph and what it answers on the gate split."""

    path: Path
    logits: np.ndarray
    size_bytes: int


@dataclass(frozen=True)
class Judgment:
    """What was found about one candidate."""

    name: str
    recipe: str
    path: Path
    accepted: bool
    reason: str
    gate: GateResult | None
    latency: Latency | None
    baseline_latency: Latency | None
    size_bytes: int
    agreement: float | None = None
    """Share of gate rows where candidate and baseline choose the same class."""
    worst_class_drop: float | None = None

    @property
    def verdict(self) -> str:
        return self.gate.verdict if self.gate else "fail"

    def to_dict(self) -> dict[str, Any]:
        """The entry of `candidates` in the stage's facts."""
        gate = self.gate
        return {
            "name": self.name,
            "recipe": self.recipe,
            "verdict": self.verdict,
            "accepted": self.accepted,
            "reason": self.reason,
            "metric": gate.metric if gate else None,
            "accuracy": gate.candidate if gate else None,
            "baseline_accuracy": gate.baseline if gate else None,
            "drop": gate.drop if gate else None,
            "low": gate.low if gate else None,
            "high": gate.high if gate else None,
            "method": gate.method if gate else None,
            "n": gate.num_samples if gate else 0,
            "samples_needed": gate.samples_needed if gate else None,
            "agreement": self.agreement,
            "worst_class_drop": self.worst_class_drop,
            "size_bytes": self.size_bytes,
            "latency_ms_p50": self.latency.p50_ms if self.latency else None,
            "latency_ms_p99": self.latency.p99_ms if self.latency else None,
            "baseline_latency_ms_p50": self.baseline_latency.p50_ms if self.baseline_latency else None,
            "speedup": self.latency.speedup if self.latency else None,
        }

    def variant(self) -> Variant:
        """The entry of the manifest for an accepted candidate."""
        assert self.gate is not None, "only a judged candidate becomes a variant"
        assert self.latency is not None, "only a judged candidate becomes a variant"
        return Variant(
            name=self.name,
            file=self.path.name,
            precision="int8",
            recipe=self.recipe,
            verdict=self.gate.verdict,
            metrics={
                f"gate.{self.gate.metric}": self.gate.candidate,
                "gate.delta": self.gate.delta,
                "gate.low": self.gate.low,
                "gate.high": self.gate.high,
                "gate.rows": float(self.gate.num_samples),
                "latency_ms_p50": self.latency.p50_ms,
                "latency_ms_p99": self.latency.p99_ms,
                "speedup": self.latency.speedup,
            },
        )


def make_baseline(path: Path, rows: CompressionRows) -> Baseline:
    """Predict the gate split with the float graph, once for all candidates."""
    return Baseline(path, predict_graph(path, rows.gate), file_bytes(path))


def judge(
    name: str, recipe: str, path: Path, baseline: Baseline, rows: CompressionRows, spec: CompressSpec
) -> Judgment:
    """Measure a candidate file and decide about it."""
    size = file_bytes(path)
    logits = predict_graph(path, rows.gate)
    if not np.isfinite(logits).all():
        reason = f"{int((~np.isfinite(logits)).any(axis=1).sum())} gate rows have NaN or infinite outputs"
        return Judgment(name, recipe, path, False, reason, None, None, None, size)
    gate = gate_candidate(baseline.logits, logits, rows, spec.budget.max_drop)
    before, after = paired_latency(baseline.path, path, rows.gate)
    accepted, reason = decide_candidate(gate, after.speedup, spec)
    classification = rows.task == "classification"
    return Judgment(
        name=name,
        recipe=recipe,
        path=path,
        accepted=accepted,
        reason=reason,
        gate=gate,
        latency=after,
        baseline_latency=before,
        size_bytes=size,
        agreement=float((logits.argmax(1) == baseline.logits.argmax(1)).mean()) if classification else None,
        worst_class_drop=worst_class_drop(baseline.logits, logits, rows) if classification else None,
    )


def gate_candidate(baseline: np.ndarray, candidate: np.ndarray, rows: CompressionRows, max_drop: float) -> GateResult:
    """The gate of the task: accuracy for classification, R² for regression."""
    targets = rows.gate_targets
    if rows.task == "regression":
        return score_gate(r2_scores(baseline, targets), r2_scores(candidate, targets), max_drop, metric="r2")
    return accuracy_gate(baseline.argmax(1) == targets, candidate.argmax(1) == targets, max_drop)


def decide_candidate(gate: GateResult, speedup: float, spec: CompressSpec) -> tuple[bool, str]:
    """Accepted or not, and why, in one sentence."""
    if gate.verdict == "fail":
        return False, f"loses too much: {gate.sentence()}"
    if speedup <= FASTER_THAN:
        return False, f"is not faster than the float graph here ({speedup:.2f}×)"
    if gate.verdict == "pass":
        return True, f"within the budget: {gate.sentence()}"
    if spec.on_inconclusive == "keep_baseline":
        return False, f"the gate split cannot tell: {gate.sentence()}"
    if gate.drop > spec.budget.max_drop:
        return False, f"the gate split cannot tell and the point estimate is beyond the budget: {gate.sentence()}"
    return True, f"accepted on the point estimate, the gate split cannot tell: {gate.sentence()}"


def worst_class_drop(baseline: np.ndarray, candidate: np.ndarray, rows: CompressionRows) -> float:
    """Largest loss of recall over the classes that occur in the gate split."""
    targets = rows.gate_targets
    before, after = baseline.argmax(1) == targets, candidate.argmax(1) == targets
    return float(max(before[targets == c].mean() - after[targets == c].mean() for c in np.unique(targets)))
