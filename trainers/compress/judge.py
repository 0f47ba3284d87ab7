"""One candidate against the baseline: quality with its interval, speed, size, and the reason of the decision.

Invariant: a candidate is accepted only if its outputs are finite, a row's answer is the same alone and in any company,
the gate does not fail it, no class loses more than allowed, and it gains what the target asks for; every rejection
carries its reason.

Covered: ONNX files. Not covered: which candidates are tried (ladder.py).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np

from cluster.bundle.independence import Independence
from cluster.bundle.manifest import Variant
from cluster.errors import ModelError
from cluster.spec.compress import CompressSpec
from trainers.compress.gate import GateResult, gate_outputs
from trainers.compress.macs import graph_macs
from trainers.compress.measure import LARGEST_BATCH, Cost, paired_cost
from trainers.compress.memory import peak_memory_bytes
from trainers.compress.rows import CompressionRows
from trainers.export.graph_file import file_bytes
from trainers.export.independence import float_answers, graph_independence
from trainers.export.session import open_session, run_batches

ABOUT_EQUAL = 0.05  # a ratio this near to 1 is within what two measurements of one graph differ by
FASTER_THAN = 1 + ABOUT_EQUAL  # times the baseline; a candidate that saves no time costs accuracy for nothing
SLOWER_AT_MOST = 0.9  # times the baseline's speed, when size is what matters
CLASS_ROWS_MIN = 3  # a class of ten rows that loses two says nothing

Precision = Literal["fp32", "fp16", "bf16", "int8"]


@dataclass(frozen=True)
class Baseline:
    """The float graph and what it answers on the gate split."""

    path: Path
    outputs: np.ndarray
    """(N, C) on the gate split."""
    size_bytes: int
    macs: int | None = None
    """Multiply-accumulates of one row."""
    peak_memory_bytes: int | None = None
    answers: Mapping[str, np.ndarray] = field(default_factory=dict)
    """Every output for some gate rows."""
    independence: Independence | None = None


@dataclass(frozen=True)
class Judgment:
    """What was found about one candidate."""

    name: str
    recipe: str
    parent: str
    path: Path | None
    precision: Precision
    accepted: bool
    reason: str
    gate: GateResult | None = None
    cost: Cost | None = None
    baseline_cost: Cost | None = None
    size_bytes: int | None = None
    macs: int | None = None
    """Multiply-accumulates of one row; a quantized graph has its parent's."""
    peak_memory_bytes: int | None = None
    """What loading it and answering the largest measured batch adds to a process."""
    agreement: float | None = None
    """Share of gate rows where candidate and baseline choose the same class."""
    worst_class_drop: float | None = None
    independence: Independence | None = None
    """How far a row's answer moves in company; null for a candidate that was stopped before."""
    notes: dict[str, Any] = field(default_factory=dict)
    """Proxies, excluded nodes, pruning plan, …"""

    @property
    def verdict(self) -> str:
        return self.gate.verdict if self.gate else "stopped"

    def to_dict(self) -> dict[str, Any]:
        """The entry of `candidates` in the stage's facts. `low` and `high` bound the drop."""
        gate = self.gate
        quality = {
            "metric": gate.metric if gate else None,
            "accuracy": gate.candidate if gate else None,
            "baseline_accuracy": gate.baseline if gate else None,
            "drop": 0.0 - gate.delta if gate else None,
            "low": 0.0 - gate.high if gate else None,
            "high": 0.0 - gate.low if gate else None,
            "method": gate.method if gate else None,
            "n": gate.num_samples if gate else 0,
            "samples_needed": gate.samples_needed if gate else None,
            "agreement": self.agreement,
            "worst_class_drop": self.worst_class_drop,
            "independence": self.independence.to_dict() if self.independence else None,
        }
        cost = self.cost.to_dict() if self.cost else dict.fromkeys(Cost.__dataclass_fields__)
        return {
            "name": self.name,
            "recipe": self.recipe,
            "parent": self.parent,
            "precision": self.precision,
            "verdict": self.verdict,
            "accepted": self.accepted,
            "reason": self.reason,
            **quality,
            "size_bytes": self.size_bytes,
            "macs": self.macs,
            "peak_memory_bytes": self.peak_memory_bytes,
            **cost,
            "baseline_latency_ms_p50": self.baseline_cost.latency_ms_p50 if self.baseline_cost else None,
            "notes": self.notes,
        }

    def variant(self) -> Variant:
        """The entry of the manifest for an accepted candidate."""
        assert self.gate is not None, "only a judged candidate becomes a variant"
        assert self.cost is not None, "only a measured candidate becomes a variant"
        return Variant(
            name=self.name,
            file=f"model.{self.name}.onnx",
            precision=self.precision,
            recipe=self.recipe,
            verdict=self.gate.verdict,
            rows_independent=self.independence.independent if self.independence else None,
            metrics={
                f"gate.{self.gate.metric}": self.gate.candidate,
                "gate.delta": self.gate.delta,
                "gate.low": self.gate.low,
                "gate.high": self.gate.high,
                "gate.rows": float(self.gate.num_samples),
                **{name: float(value) for name, value in self.cost.to_dict().items()},
            },
        )


@dataclass(frozen=True)
class Candidate:
    """A file to judge, with what it answers on the gate split."""

    name: str
    recipe: str
    parent: str
    path: Path
    outputs: np.ndarray
    precision: Precision
    notes: dict[str, Any] = field(default_factory=dict)
    macs: int | None = None


def predict_graph(path: Path, inputs: dict[str, np.ndarray], *, threads: int = 1) -> np.ndarray:
    """First output of all rows: (N, …)."""
    return next(iter(run_batches(open_session(path, threads=threads), inputs).values()))


def make_baseline(path: Path, rows: CompressionRows) -> Baseline:
    """Predict the gate split with the float graph, once for all candidates. Raises ModelError for NaN outputs."""
    outputs = predict_graph(path, rows.gate)
    bad = bad_rows(outputs)
    if bad:
        raise ModelError(
            f"Cannot compress {path.name}",
            found=f"{bad} of {len(outputs)} gate rows have NaN or infinite outputs",
            rule="candidates are compared with the float graph's answers, which must be numbers",
            remedy="Look for extreme values in the data, or train with a lower learning rate.",
        )
    answers = float_answers(path, rows.gate)
    return Baseline(
        path,
        outputs,
        file_bytes(path),
        graph_macs(path),
        peak_memory_bytes(path, rows=LARGEST_BATCH),
        answers,
        graph_independence(path, rows.gate, answers),
    )


def bad_rows(outputs: np.ndarray) -> int:
    """How many rows have an output that is no finite number."""
    return int((~np.isfinite(outputs).reshape(len(outputs), -1).all(axis=1)).sum())


def judge(candidate: Candidate, baseline: Baseline, rows: CompressionRows, spec: CompressSpec) -> Judgment:
    """Measure a candidate and decide about it."""
    common: dict[str, Any] = {
        "name": candidate.name,
        "recipe": candidate.recipe,
        "parent": candidate.parent,
        "path": candidate.path,
        "precision": candidate.precision,
        "size_bytes": file_bytes(candidate.path),
        "macs": candidate.macs,
        "notes": candidate.notes,
    }
    bad = bad_rows(candidate.outputs)
    if bad:
        reason = f"{bad} of {len(candidate.outputs)} gate rows have NaN or infinite outputs"
        return Judgment(accepted=False, reason=reason, **common)
    gate = gate_outputs(baseline.outputs, candidate.outputs, rows, spec.budget.max_drop)
    common["independence"] = independence = graph_independence(
        candidate.path, rows.gate, baseline.answers, precision=candidate.precision
    )
    if not independence.independent:
        return Judgment(accepted=False, reason=_dependent(independence, baseline), gate=gate, **common)
    before, after = paired_cost(baseline.path, candidate.path, rows.gate, spec.target)
    memory = peak_memory_bytes(candidate.path, rows=LARGEST_BATCH, threads=spec.target.threads)
    worst = agreement = None
    if rows.task == "classification":
        agreement = float((candidate.outputs.argmax(1) == baseline.outputs.argmax(1)).mean())
        worst = worst_class_drop(baseline.outputs, candidate.outputs, rows)
    accepted, reason = decide_candidate(gate, after, common["size_bytes"] / baseline.size_bytes, worst, spec)
    return Judgment(
        accepted=accepted,
        reason=reason,
        gate=gate,
        cost=after,
        baseline_cost=before,
        peak_memory_bytes=memory,
        agreement=agreement,
        worst_class_drop=worst,
        **common,
    )


def decide_candidate(
    gate: GateResult, cost: Cost, size_ratio: float, worst_class: float | None, spec: CompressSpec
) -> tuple[bool, str]:
    """Accepted or not, and why, in one sentence."""
    if gate.verdict == "fail":
        return False, f"loses too much: {gate.sentence()}"
    if worst_class is not None and worst_class > spec.max_class_drop:
        return False, f"one class loses {worst_class:.1%} of its recall, allowed is {spec.max_class_drop:.1%}"
    slow = _too_slow(cost, size_ratio, spec)
    if slow:
        return False, slow
    if gate.verdict == "pass":
        return True, f"within the budget: {gate.sentence()}"
    if spec.on_inconclusive == "keep_baseline":
        return False, f"the gate split cannot tell: {gate.sentence()}"
    if gate.drop > spec.budget.max_drop:
        return False, f"the gate split cannot tell and the point estimate is beyond the budget: {gate.sentence()}"
    return True, f"accepted on the point estimate, the gate split cannot tell: {gate.sentence()}"


def _dependent(found: Independence, baseline: Baseline) -> str:
    """The batcher joins strangers' requests, so whoever sends an outlier would move everyone's answers."""
    also = baseline.independence is not None and not baseline.independence.independent
    return f"rows change one another's answers{', as in the float graph' if also else ''}: {found.sentence()}"


def worst_class_drop(baseline: np.ndarray, candidate: np.ndarray, rows: CompressionRows) -> float:
    """Largest loss of recall over the classes that lose at least `CLASS_ROWS_MIN` rows."""
    targets = rows.gate_targets
    before, after = baseline.argmax(1) == targets, candidate.argmax(1) == targets
    worst = 0.0
    for label in np.unique(targets):
        of_class = targets == label
        lost = int(before[of_class].sum()) - int(after[of_class].sum())
        if lost >= CLASS_ROWS_MIN:
            worst = max(worst, lost / int(of_class.sum()))
    return worst


def objective(judgment: Judgment, spec: CompressSpec) -> float:
    """What the target minimizes."""
    assert judgment.cost is not None, "only a measured candidate has an objective"
    assert judgment.size_bytes is not None, "only a measured candidate has a size"
    if spec.target.minimize == "size":
        return float(judgment.size_bytes)
    if spec.target.minimize == "cost":
        return judgment.cost.thread_ms_per_row
    return 1.0 / judgment.cost.speedup  # each was timed against the same baseline, in different minutes


def _too_slow(cost: Cost, size_ratio: float, spec: CompressSpec) -> str | None:
    minimize = spec.target.minimize
    if minimize == "size":
        if size_ratio >= 1:
            return f"is not smaller than the float graph ({size_ratio:.2f}× its bytes)"
        return f"is slower than the float graph here ({cost.speedup:.2f}×)" if cost.speedup < SLOWER_AT_MOST else None
    speedup = cost.cost_ratio if minimize == "cost" else cost.speedup
    if speedup <= FASTER_THAN:
        what = "cheaper a row" if minimize == "cost" else "faster"
        return f"is not {what} than the float graph here ({speedup:.2f}×)"
    return None
