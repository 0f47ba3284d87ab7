"""The order in which recipes are tried: from cheap to dear, each step only where the one before has not decided.

    graph recipes on the float graph     seconds each, side by side as Ray tasks
      └ remedies (other calibration, then float nodes)   only if plain static INT8 loses too much
    recipes that train                   minutes each; each network becomes a parent (training_recipes.py)
      └ on each parent, the graph recipes that were accepted on the float graph

Invariant: every recipe of the spec ends as a candidate with a decision or a reason why it was stopped, or as a skipped
one with its reason; latency is measured when no task runs.

Covered: order, skipping, and the way of each candidate to its decision. Not covered: how one recipe works
(graph_recipes.py, training_recipes.py).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path

import numpy as np

from cluster.spec.compress import CompressSpec
from cluster.telemetry.events import EventSink, TrialUpdated
from trainers.compress.candidate import BASELINE, Baseline, Candidate, GraphTask
from trainers.compress.decision import accept_or_reject
from trainers.compress.measure import measure_candidate
from trainers.compress.ray_tasks import read_gate_outputs, run_graph_tasks
from trainers.compress.rows import CompressionRows, rows_digest
from trainers.export.graph_file import graph_digest
from trainers.export.precision import Precision

FIRST = ("int8_dynamic", "int8_static_per_tensor", "int8_static", "int8_weight_only", "fp16", "bf16")
REMEDIES = (("int8_static_percentile", "int8_static_entropy"), ("int8_static_excluded",))
"""Tried in turn, only while no static INT8 keeps the budget."""
STATIC = frozenset({"int8_static", "int8_static_per_tensor", *REMEDIES[0], *REMEDIES[1]})
PRECISIONS: dict[str, Precision] = {"fp16": "fp16", "bf16": "bf16"}
"""Of graph recipes; all others give int8."""


@dataclass
class RecipeSearch:
    """One search over recipes for one baseline."""

    spec: CompressSpec
    rows: CompressionRows
    prepared: Path
    baseline: Baseline
    cache: Path
    """Folder of finished tasks; what lies there is not made again."""
    events: EventSink
    stage: str = "compress"
    exhaustive: bool = False
    """Try every recipe whatever the ones before it found (for comparison in the benchmark)."""
    ensure_ray: Callable[[], bool] | None = None
    """Of the stage's context; None: recipes run on Ray where this process has a session."""
    candidates: list[Candidate] = field(default_factory=list)
    """Stopped, accepted or rejected ones, in the order in which they were decided."""
    skipped: list[dict[str, str]] = field(default_factory=list)

    def try_graph_recipes(self, parent: Baseline | Candidate) -> list[Candidate]:
        """Apply the graph recipes to a float graph; returns its candidates."""
        wanted: Sequence[str] = [recipe for recipe in FIRST if recipe in self.spec.recipes]
        if parent.name != BASELINE and not self.exhaustive:
            wanted = self._worth_trying(parent, wanted)
        found = self._try(parent, wanted)
        for step in REMEDIES:
            wanted = [recipe for recipe in step if recipe in self.spec.recipes]
            if wanted and not self.exhaustive and self._static_keeps_budget(found):
                for recipe in wanted:
                    self.skip(candidate_name(parent.name, recipe), recipe, "static INT8 keeps the budget without it")
            else:
                found += self._try(parent, wanted)
        return found

    def propose(self, candidate: Candidate) -> Candidate:
        """Emit the event of a candidate that is about to be made."""
        parameters = {"recipe": candidate.recipe, "parent": candidate.parent}
        event = TrialUpdated(stage=self.stage, trial=candidate.name, state="running", parameters=parameters)
        self.events.emit(event)
        return candidate

    def decide(self, made: Candidate, outputs: np.ndarray) -> Candidate:
        """Measure a candidate that was made, accept or reject it, and keep it. `outputs`: (N, C) on the gate split."""
        measured = measure_candidate(made, outputs, self.baseline, self.rows, self.spec)
        return self.keep(accept_or_reject(measured, self.baseline, self.spec))

    def keep(self, candidate: Candidate) -> Candidate:
        """Keep a candidate that goes no further, and emit its event."""
        self.candidates.append(candidate)
        self.events.emit(trial_event(self.stage, candidate))
        return candidate

    def skip(self, name: str, recipe: str, reason: str) -> None:
        """Note a candidate that is not made."""
        self.skipped.append({"name": name, "recipe": recipe, "reason": reason})

    def _try(self, parent: Baseline | Candidate, recipes: Sequence[str]) -> list[Candidate]:
        """Make candidates side by side, then measure and decide one after another."""
        graph = parent.path
        assert graph is not None, "a parent was made"
        digest, data = graph_digest(graph), self._data_digest
        tasks = [GraphTask(recipe, graph, digest, self.prepared, data, self.spec) for recipe in recipes]
        proposed = [self.propose(_proposal(parent, task)) for task in tasks]
        made = run_graph_tasks(proposed, self.cache, concurrency=self.spec.concurrency, ensure_ray=self.ensure_ray)
        return [
            self.keep(one)
            if one.state == "stopped"
            else self.decide(replace(one, macs=parent.macs), read_gate_outputs(one))
            for one in made
        ]

    @cached_property
    def _data_digest(self) -> str:
        return rows_digest(self.prepared)

    def _worth_trying(self, parent: Baseline | Candidate, recipes: Sequence[str]) -> Sequence[str]:
        """The first recipes that were accepted on the float graph; all of them when none was."""
        accepted = {one.recipe for one in self.candidates if one.parent == BASELINE and one.accepted}
        if not accepted & set(recipes):
            return recipes
        for recipe in recipes:
            if recipe not in accepted:
                name = candidate_name(parent.name, recipe)
                self.skip(name, recipe, "it was not accepted on the unchanged network")
        return [recipe for recipe in recipes if recipe in accepted]

    def _static_keeps_budget(self, found: list[Candidate]) -> bool:
        return any(
            one.recipe in STATIC
            and one.keeps_budget(self.spec.budget.max_drop)
            and one.independence
            and one.independence.independent
            for one in found
        )


def _proposal(parent: Baseline | Candidate, task: GraphTask) -> Candidate:
    precision: Precision = PRECISIONS.get(task.recipe, "int8")
    notes = {"made_by": parent.recipe} if isinstance(parent, Candidate) else {}
    return Candidate(candidate_name(parent.name, task.recipe), task.recipe, parent.name, precision, task, notes=notes)


def candidate_name(parent: str, recipe: str) -> str:
    """`int8_static` on the float graph, `prune50_int8_static` on a parent."""
    return recipe if parent == BASELINE else f"{parent}_{recipe}"


def trial_event(stage: str, candidate: Candidate) -> TrialUpdated:
    """The record that a table of trials shows for a candidate that goes no further."""
    entry = candidate.to_dict()
    numbers = ("accuracy", "drop", "size_bytes", "latency_ms_p50", "speedup")
    return TrialUpdated(
        stage=stage,
        trial=candidate.name,
        state="accepted" if candidate.accepted else "rejected",
        parameters={"recipe": candidate.recipe, "parent": candidate.parent},
        metrics={name: float(entry[name]) for name in numbers if entry[name] is not None},
        note=candidate.reason,
    )
