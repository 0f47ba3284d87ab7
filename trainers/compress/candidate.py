"""A candidate: one compressed form of the network, from its proposal to the decision about it.

    proposed -> made -> measured -> accepted | rejected
            `-------`-> stopped

A recipe that cannot take the graph, a hopeless first look and answers that are not numbers stop a candidate.

Invariant: a candidate is frozen, each step returns the next one; stopped, accepted and rejected ones carry their
reason, and an accepted one has a file, a gate result and a cost. Never imports torch.

Covered: any recipe. Not covered: how it is made (graph_recipes.py, retraining.py), measured (measure.py), decided about
(decision.py).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np

from cluster.bundle.independence import Independence
from cluster.bundle.manifest import Variant
from cluster.spec.compress import CompressSpec
from trainers.compress.accuracy_gate import GateResult
from trainers.compress.latency import Cost
from trainers.export.bundle import FLOAT_VARIANT
from trainers.export.precision import Precision

BASELINE = FLOAT_VARIANT
DENSE = "dense"
"""Recipe name of a smaller network that is trained as it stands, to compare compressed ones with."""
State = Literal["proposed", "made", "stopped", "measured", "accepted", "rejected"]


@dataclass(frozen=True)
class GraphTask:
    """One graph recipe on one parent graph, ready to be sent to a worker that sees the same folders."""

    recipe: str
    parent: Path
    parent_sha256: str
    prepared: Path
    """Folder that `open_prepared` reads."""
    data_sha256: str
    spec: CompressSpec


@dataclass(frozen=True)
class TrainingTask:
    """One network to train."""

    arguments: dict[str, Any]
    """Of `build_student`, without `lesson`."""
    epochs: int
    learning_rate: float
    distill: bool


@dataclass(frozen=True)
class Baseline:
    """The float graph, which candidates are compared with, and what it answers on the gate split."""

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
    name: str = BASELINE


@dataclass(frozen=True)
class Candidate:
    """What is known about one candidate, as far as it has come."""

    name: str
    recipe: str
    parent: str = BASELINE
    precision: Precision = "fp32"
    task: GraphTask | TrainingTask | None = None
    """How it is made."""
    state: State = "proposed"
    reason: str = ""
    notes: dict[str, Any] = field(default_factory=dict)
    """Proxies, excluded nodes, pruning plan, …"""
    path: Path | None = None
    size_bytes: int | None = None
    macs: int | None = None
    """Multiply-accumulates of one row; a quantized graph has its parent's."""
    gate: GateResult | None = None
    independence: Independence | None = None
    """How far a row's answer moves in company."""
    cost: Cost | None = None
    baseline_cost: Cost | None = None
    peak_memory_bytes: int | None = None
    """What loading it and answering the largest measured batch adds to a process."""
    agreement: float | None = None
    """Share of gate rows where candidate and baseline choose the same class."""
    worst_class_drop: float | None = None

    @property
    def accepted(self) -> bool:
        return self.state == "accepted"

    @property
    def verdict(self) -> str:
        return self.gate.verdict if self.gate else "stopped"

    @property
    def file(self) -> Path:
        """Its graph, from `made` on."""
        assert self.path is not None, f"{self.name} is {self.state}"
        return self.path

    def made(self, path: Path, *, macs: int | None = None, notes: Mapping[str, Any] | None = None) -> Candidate:
        return replace(self, state="made", path=path, macs=macs, notes={**self.notes, **(notes or {})})

    def stopped(self, reason: str, notes: Mapping[str, Any] | None = None) -> Candidate:
        return replace(self, state="stopped", reason=reason, notes={**self.notes, **(notes or {})})

    def measured(self, **found: Any) -> Candidate:
        return replace(self, state="measured", **found)

    def decided(self, accepted: bool, reason: str) -> Candidate:
        return replace(self, state="accepted" if accepted else "rejected", reason=reason)

    def keeps_budget(self, max_drop: float) -> bool:
        """Whether the loss that was seen is within the budget, proved or not."""
        return self.gate is not None and self.gate.drop <= max_drop

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
        assert self.gate is not None, "an accepted candidate has a gate result"
        assert self.cost is not None, "an accepted candidate has a cost"
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
