"""The facts of each stage as a model: what its record says to later stages, the report and `manta show`.

    EvaluateFacts.of(run.records())     read a record
    StageResult(facts=EvaluateFacts(…)) write one

Invariant: the JSON of facts is exactly what was set: a field that was not set is not written, and one that this version
does not know (of another version's run) is kept. So digests of outputs do not change when a field is added here. What
the report reads has defaults.

Covered: names and types of facts, what they change of the resolved run. Not covered: how they come about (the rooms).
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, ClassVar, Self

from pydantic import BaseModel, ConfigDict

from cluster.bundle.manifest import Variant
from cluster.bundle.signature import TensorSpec
from cluster.spec.resolve import DataFacts, ResolvedRun

if TYPE_CHECKING:
    from cluster.store.run_folder import StageRecord

Number = int | float
"""Kept as it is: an integer is not turned into a float, which would change the JSON."""
FOUND_REASONS = "found_reasons"
"""In the details of a stage with `found`: path -> why. No part of the facts: words must not change a digest."""


class StageFacts(BaseModel):
    """Base of all; what a stage without facts leaves."""

    model_config = ConfigDict(frozen=True, extra="allow")
    stage: ClassVar[str] = ""

    @classmethod
    def of(cls, records: Mapping[str, StageRecord]) -> Self | None:
        """Facts of the stage among a run's records; None where it has not run, or was skipped."""
        record = records.get(cls.stage)
        return None if record is None or not record.facts else cls.model_validate_json(json.dumps(record.facts))

    def to_json(self) -> dict[str, Any]:
        """What is set, for the record."""
        return self.model_dump(mode="json", include=self.model_fields_set)

    def changes(self, run: ResolvedRun, details: Mapping[str, Any]) -> ResolvedRun:
        """The resolved run after this stage, whether it ran or its record is reused. Pure."""
        return run


class FoundFacts(StageFacts):
    """Of a stage that may decide values which the check stage left open."""

    found: dict[str, Any] = {}
    """Dotted path of the spec -> value."""

    def changes(self, run: ResolvedRun, details: Mapping[str, Any]) -> ResolvedRun:
        reasons = details.get(FOUND_REASONS, {})
        return run.with_found({path: (value, reasons.get(path, "")) for path, value in self.found.items()})


class CheckFacts(StageFacts):
    stage = "check"
    data: DataFacts
    splits: dict[str, int]
    """Rows of each split, before cleaning and balancing."""
    class_rows: dict[str, int] = {}


class TargetFacts(BaseModel):
    """How a quantity is learned."""

    model_config = ConfigDict(frozen=True, extra="allow")
    kind: str
    """A value of `data.target_transform`."""
    reason: str


class ShardsFacts(BaseModel):
    """Where another store holds the prepared data."""

    model_config = ConfigDict(frozen=True)
    store: str
    digest: str


class PrepareFacts(FoundFacts):
    """And whatever else the fit of the transforms has learned: columns, balance, mean, deviation, …"""

    stage = "prepare"
    splits: dict[str, int] = {}
    """Rows of each split."""
    inputs: tuple[TensorSpec, ...] = ()
    selection: dict[str, Any] | None = None
    """Features that were kept, and every one's score (trainers/data/fit/select.py)."""
    target: TargetFacts | None = None
    shards: ShardsFacts | None = None


class SearchFacts(StageFacts):
    stage = "search"
    best: dict[str, Any] = {}
    """Dotted path of the spec -> value of the best trial."""
    best_trial: int | None = None
    metric: str = ""
    metrics: dict[str, Number] = {}
    """Of the best trial at its best epoch."""
    trials: int = 0
    repeats: list[dict[str, Any]] = []
    """Finalists under other seeds, the best first."""

    def changes(self, run: ResolvedRun, details: Mapping[str, Any]) -> ResolvedRun:
        return run.with_values(self.best) if self.best else run


class TrainFacts(FoundFacts):
    stage = "train"
    metrics: dict[str, Number]
    best_epoch: int
    updates: int
    skipped_updates: int
    num_parameters: int
    stopped_early: bool


class EvaluateFacts(StageFacts):
    stage = "evaluate"
    metrics: dict[str, Number] = {}
    """On the test split."""
    per_class: list[dict[str, Any]] = []
    """`{class, precision, recall, f1, support}`."""
    confusion: list[list[int]] = []
    """Rows are true classes."""
    baseline: dict[str, Any] | None = None
    """What is reached without a network (trainers/evaluate/baseline.py); None in older runs."""


class CompressFacts(StageFacts):
    stage = "compress"
    chosen: str = ""
    """Name of the variant that is served."""
    variants: tuple[Variant, ...] = ()
    """The float graph and what the gate has accepted."""
    candidates: list[dict[str, Any]] = []
    """Everything that was tried, one row each."""
    skipped: list[dict[str, Any]] = []
    baseline: dict[str, Any] = {}
    """Size and cost of the float graph."""
    parity: dict[str, Any] = {}
    rival: dict[str, Any] | None = None
    test: dict[str, Any] | None = None
    """The chosen variant on the test split; None where the float graph stays."""


class ExportFacts(StageFacts):
    stage = "export"
    bundle: str
    default_variant: str
    parity: dict[str, Any]
    size_bytes: dict[str, int]


class DeployFacts(StageFacts):
    stage = "deploy"
    name: str
    url: str
    version: str


class PredictFacts(StageFacts):
    """And the scores: `accuracy` or `mean_absolute_error`, and `agreement` with the evaluated model."""

    stage = "predict"
    rows: int
