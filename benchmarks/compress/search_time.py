"""The wall time of the recipe search against trying every recipe one after another, on the network of a finished run.

Both try the same recipes with the same training engine on a Ray of their own; the second runs in `GROUPS`, so that no
piece takes longer than a few minutes, and its time is the sum of theirs (without the starts of Ray).
"""

from __future__ import annotations

import shutil
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from cluster.runtime.session import ray_session
from cluster.spec.compress import CompressSpec, PruneSpec, Recipe
from cluster.store.run_folder import RunFolder
from cluster.telemetry.events import ListSink
from trainers.compress.measure import measure_baseline
from trainers.compress.recipe_search import RecipeSearch
from trainers.compress.retraining import Retraining
from trainers.compress.rows import rows_of
from trainers.compress.training_recipes import prune_by_bisection, prune_once
from trainers.data.shards import open_prepared

RATIOS = (0.125, 0.25, 0.375, 0.5, 0.625, 0.75)
GROUPS: dict[str, tuple[float, ...]] = {"a": (0.0, 0.125), "b": (0.25, 0.375), "c": (0.5,), "d": (0.625,), "e": (0.75,)}
"""Networks of each piece; 0 is the network as it is."""
RECIPES: tuple[Recipe, ...] = (
    *("int8_dynamic", "int8_static_per_tensor", "int8_static", "int8_weight_only"),
    *("int8_static_percentile", "int8_static_entropy", "int8_static_excluded", "prune"),
)
EPOCHS = 2  # enough to keep the budget; longer training would favor the search, which trains less often


def search_cheap_to_dear(run: RunFolder, work: Path) -> dict[str, Any]:
    """Cheap to dear, two trials at a time, stopping where a step has decided."""

    def try_recipes(search: RecipeSearch, retraining: Retraining) -> None:
        search.try_graph_recipes(search.baseline)
        prune_by_bisection(search, retraining)

    return _timed(run, work / "search", try_recipes, exhaustive=False)


def try_everything(run: RunFolder, work: Path, group: str) -> dict[str, Any]:
    """Every recipe on every network of the group, in turn."""

    def try_recipes(search: RecipeSearch, retraining: Retraining) -> None:
        for ratio in GROUPS[group]:
            if ratio:
                prune_once(search, retraining, ratio)
            else:
                search.try_graph_recipes(search.baseline)

    return _timed(run, work / f"after-{group}", try_recipes, exhaustive=True)


def _timed(
    run: RunFolder, work: Path, try_recipes: Callable[[RecipeSearch, Retraining], None], *, exhaustive: bool
) -> dict[str, Any]:
    resolved = run.read_resolved()
    assert resolved is not None, "the run is finished"
    spec = CompressSpec(
        recipes=RECIPES,
        prune=PruneSpec(ratios=RATIOS, epochs=EPOCHS, learning_rate=2e-3),
        concurrency=1 if exhaustive else 2,
    )
    resolved = resolved.model_copy(update={"spec": resolved.spec.model_copy(update={"compress": spec})})
    prepared = open_prepared(run.stage("prepare"))
    rows, sink = rows_of(prepared, calibration_rows=spec.calibration_rows), ListSink()
    shutil.rmtree(work, ignore_errors=True)  # what lies in the cache takes no time
    work.mkdir(parents=True)
    with ray_session():
        started = time.monotonic()
        baseline = measure_baseline(run.stage("compress") / "model.onnx", rows)
        search = RecipeSearch(spec, rows, prepared.folder, baseline, work / "trials", sink, exhaustive=exhaustive)
        weights, events = run.stage("train"), work / "events.jsonl"
        try_recipes(search, Retraining(resolved, prepared, weights, work / "models", events, sink, "compress"))
        seconds = time.monotonic() - started
    return {
        "seconds": seconds,
        "candidates": {one.name: {"accepted": one.accepted, "speedup": one.cost and one.cost.speedup,
                                  "accuracy": one.gate and one.gate.candidate} for one in search.candidates},
        "skipped": len(search.skipped),
    }  # fmt: skip
