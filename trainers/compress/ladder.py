"""The ladder: recipes from cheap to dear, each rung only where the one below has not decided.

    graph recipes on the baseline        seconds each, side by side as Ray tasks
      └ remedies (other calibration, then float nodes)   only if plain static INT8 loses too much
    recipes that train (model_steps.py)  minutes each; each result becomes a parent
      └ on each parent, the graph recipes that were accepted on the baseline

Invariant: every recipe of the spec ends as a judged candidate, a stopped one with its reason, or a skipped one with its
reason; latency is measured when no trial runs.

Covered: order, skipping, judging. Not covered: how one recipe works (graph_trial.py, model_steps.py).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from cluster.spec.compress import CompressSpec
from cluster.telemetry.events import EventSink, TrialUpdated
from trainers.compress.graph_trial import GraphTrial
from trainers.compress.judge import Baseline, Candidate, Judgment, Precision, judge
from trainers.compress.rows import CompressionRows, rows_digest
from trainers.compress.trials import TrialOutcome, run_trials
from trainers.export.graph_file import graph_digest

FIRST_RUNG = ("int8_dynamic", "int8_static_per_tensor", "int8_static", "int8_weight_only", "fp16", "bf16")
REMEDIES = (("int8_static_percentile", "int8_static_entropy"), ("int8_static_excluded",))
"""Tried rung by rung, only while no static INT8 keeps the budget."""
STATIC = frozenset({"int8_static", "int8_static_per_tensor", *REMEDIES[0], *REMEDIES[1]})
BASELINE = "fp32"
DENSE = "dense"
"""Recipe name of the rival: a smaller network that was trained as it stands."""


@dataclass(frozen=True)
class Parent:
    """A float graph that graph recipes are applied to."""

    name: str
    path: Path
    notes: dict[str, Any] = field(default_factory=dict)
    macs: int | None = None


@dataclass
class Ladder:
    """One search over recipes for one baseline."""

    spec: CompressSpec
    rows: CompressionRows
    prepared: Path
    baseline: Baseline
    cache: Path
    """Folder of finished trials; what lies there is not made again."""
    events: EventSink
    stage: str = "compress"
    exhaustive: bool = False
    """Try every recipe whatever the ones before it found (for comparison in the benchmark)."""
    judgments: list[Judgment] = field(default_factory=list)
    skipped: list[dict[str, str]] = field(default_factory=list)

    def climb(self, parent: Parent) -> list[Judgment]:
        """Apply the graph recipes to a parent; returns this parent's judgments."""
        wanted: list[str] = [recipe for recipe in FIRST_RUNG if recipe in self.spec.recipes]
        if parent.name != BASELINE and not self.exhaustive:
            wanted = self._worth_trying(parent, wanted)
        found = self._rung(parent, wanted)
        for rung in REMEDIES:
            recipes: list[str] = [recipe for recipe in rung if recipe in self.spec.recipes]
            if recipes and not self.exhaustive and self._static_keeps_budget(found):
                for recipe in recipes:
                    self._skip(parent, recipe, "static INT8 keeps the budget without it")
            else:
                found += self._rung(parent, recipes)
        return found

    def judge(self, candidate: Candidate) -> Judgment:
        """Judge a candidate that some step made, and tell the display."""
        judgment = judge(candidate, self.baseline, self.rows, self.spec)
        self.record(judgment)
        return judgment

    def record(self, judgment: Judgment) -> None:
        """Keep a judgment and tell the display."""
        self.judgments.append(judgment)
        self.events.emit(trial_event(self.stage, judgment))

    def announce(self, name: str, recipe: str, parent: str) -> None:
        """Tell the display that a trial has begun."""
        parameters = {"recipe": recipe, "parent": parent}
        self.events.emit(TrialUpdated(stage=self.stage, trial=name, state="running", parameters=parameters))

    def _rung(self, parent: Parent, recipes: list[str]) -> list[Judgment]:
        digest, data = graph_digest(parent.path), self._data_digest
        trials = [GraphTrial(recipe, parent.path, digest, self.prepared, data, self.spec) for recipe in recipes]
        for trial in trials:
            self.announce(candidate_name(parent.name, trial.recipe), trial.recipe, parent.name)
        outcomes = run_trials(trials, self.cache, concurrency=self.spec.concurrency)
        return [self._judge_outcome(parent, outcome) for outcome in outcomes]

    @cached_property
    def _data_digest(self) -> str:
        return rows_digest(self.prepared)

    def _judge_outcome(self, parent: Parent, outcome: TrialOutcome) -> Judgment:
        recipe = outcome.trial.recipe
        name = candidate_name(parent.name, recipe)
        notes = {**parent.notes, **outcome.facts["notes"], "proxies": outcome.facts.get("proxies")}
        precision: Precision = "fp16" if recipe == "fp16" else "bf16" if recipe == "bf16" else "int8"
        if outcome.stopped is not None:
            judgment = Judgment(name, recipe, parent.name, None, precision, False, outcome.stopped, notes=notes)
            self.record(judgment)
            return judgment
        outputs = np.load(outcome.gate_outputs, allow_pickle=False)
        macs = self.baseline.macs if parent.name == BASELINE else parent.macs
        return self.judge(Candidate(name, recipe, parent.name, outcome.model, outputs, precision, notes, macs))

    def _worth_trying(self, parent: Parent, recipes: list[str]) -> list[str]:
        """The first-rung recipes that were accepted on the baseline; all of them when none was."""
        accepted = {one.recipe for one in self.judgments if one.parent == BASELINE and one.accepted}
        if not accepted & set(recipes):
            return recipes
        for recipe in recipes:
            if recipe not in accepted:
                self._skip(parent, recipe, "it was not accepted on the unchanged network")
        return [recipe for recipe in recipes if recipe in accepted]

    def _skip(self, parent: Parent, recipe: str, reason: str) -> None:
        self.skipped.append({"name": candidate_name(parent.name, recipe), "recipe": recipe, "reason": reason})

    def _static_keeps_budget(self, found: list[Judgment]) -> bool:
        return any(
            one.recipe in STATIC
            and one.gate
            and one.gate.drop <= self.spec.budget.max_drop
            and one.independence
            and one.independence.independent
            for one in found
        )


ModelStep = Callable[[Ladder], None]
"""A recipe that trains: adds its judgments to the ladder and climbs it from each parent that it makes."""


def candidate_name(parent: str, recipe: str) -> str:
    """`int8_static` on the baseline, `prune50_int8_static` on a parent."""
    return recipe if parent == BASELINE else f"{parent}_{recipe}"


def trial_event(stage: str, judgment: Judgment) -> TrialUpdated:
    """The record that a table of trials shows for a judged candidate."""
    entry = judgment.to_dict()
    numbers = ("accuracy", "drop", "size_bytes", "latency_ms_p50", "speedup")
    return TrialUpdated(
        stage=stage,
        trial=judgment.name,
        state="accepted" if judgment.accepted else "rejected",
        parameters={"recipe": judgment.recipe, "parent": judgment.parent},
        metrics={name: float(entry[name]) for name in numbers if entry[name] is not None},
        note=judgment.reason,
    )
