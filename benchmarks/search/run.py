"""Manta's search against Ray Tune's own OptunaSearch + ASHA on the LCBench surrogate, at equal epochs.

python benchmarks/search/run.py --data ../shared/data/lcbench [--seeds 3] [--data-sets 34] [--methods ray,manta]
"""

from __future__ import annotations

import argparse
import json
import platform
import sys
import time
from collections.abc import Callable
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np
import optuna
from ray.tune.schedulers import AsyncHyperBandScheduler, FIFOScheduler, TrialScheduler
from ray.tune.search import Searcher
from ray.tune.search.optuna import OptunaSearch

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from benchmarks.search.lcbench import EPOCHS, SPACE, opened
from benchmarks.search.portfolio import portfolio_for
from benchmarks.search.simulate import simulate
from cluster.atomic import write_json
from trainers.search.journal import Journal
from trainers.search.ray_tune import StudySearcher
from trainers.search.schedulers import StopRule, make_scheduler, rungs_of
from trainers.search.study import Study, StudySettings

BUDGETS = (10, 25, 50)  # whole trainings
POOL_SEED = 20261124
GRACE, REDUCTION = 2, 3  # rungs 2, 6, 18, 52
Parts = tuple[Searcher, TrialScheduler, Callable[[dict[str, Any]], dict[str, Any]]]


def ray_parts(seed: int, *, early_stopping: bool = True, random: bool = False) -> Parts:
    """Ray Tune as its documentation puts it together."""
    sampler = optuna.samplers.RandomSampler(seed=seed) if random else None
    searcher = OptunaSearch(
        space=dict(SPACE), metric="value", mode="max", sampler=sampler, seed=None if random else seed
    )
    scheduler: TrialScheduler = FIFOScheduler()
    if early_stopping:
        scheduler = AsyncHyperBandScheduler(
            time_attr="epoch", metric="value", mode="max", max_t=EPOCHS, grace_period=GRACE, reduction_factor=REDUCTION
        )
    return searcher, scheduler, dict


def manta_parts(seed: int, *, early_stopping: bool = True, start: tuple = (), first_modeled: int = 1) -> Parts:
    """Ours, as the search stage puts it together."""
    kind = "asha" if early_stopping else "none"
    rungs = rungs_of(EPOCHS, GRACE, REDUCTION, kind)
    study = Study(StudySettings(SPACE, "max", seed, rungs, start, first_modeled), Journal(None))
    scheduler = make_scheduler(StopRule(kind, "max", EPOCHS, GRACE, REDUCTION, seed))
    return StudySearcher(study, lambda trial: None), scheduler, lambda config: config["values"]


def parts_of(method: str, data: Path, data_set: str, seed: int) -> Parts:
    if method.startswith("ray"):
        return ray_parts(seed, early_stopping="full" not in method, random="random" in method)
    points = portfolio_for(data, data_set, POOL_SEED + seed) if "portfolio" in method else []
    start = tuple(("portfolio", point) for point in points)
    first_modeled = 0 if "first-rung" in method else 1
    return manta_parts(seed, early_stopping="full" not in method, start=start, first_modeled=first_modeled)


def run_method(method: str, data: Path, data_sets: list[str], seeds: int, budgets: tuple[int, ...]) -> dict[str, Any]:
    """Mean and median regret of one method at each budget."""
    surrogate = opened(data)
    regrets = np.zeros((len(data_sets), seeds, len(budgets)))
    started = time.monotonic()
    for i, data_set in enumerate(data_sets):
        for seed in range(seeds):
            searcher, scheduler, values_of = parts_of(method, data, data_set, seed)

            def curve(config: dict[str, Any], of: Any = values_of, name: str = data_set) -> list[float]:
                return [float(value) for value in surrogate.curve(name, of(config))]

            best = simulate(searcher, scheduler, curve, budget_epochs=max(budgets) * EPOCHS, mode="max")
            for k, budget in enumerate(budgets):
                regrets[i, seed, k] = surrogate.regret(data_set, best[min(len(best), budget * EPOCHS) - 1])
    flat = regrets.reshape(-1, len(budgets))
    return {
        "mean": {str(b): round(float(flat[:, k].mean()), 4) for k, b in enumerate(budgets)},
        "median": {str(b): round(float(np.median(flat[:, k])), 4) for k, b in enumerate(budgets)},
        "by_data_set": {
            name: [round(float(x), 4) for x in regrets[i].mean(axis=0)] for i, name in enumerate(data_sets)
        },
        "seeds": seeds,
        "seconds": round(time.monotonic() - started, 1),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument(
        "--methods", default="ray-random,ray,ray-full,manta,manta-first-rung,manta-full,manta-portfolio"
    )
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--data-sets", type=int, default=34)
    parser.add_argument("--budgets", default=",".join(map(str, BUDGETS)))
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    budgets = tuple(int(item) for item in options.budgets.split(","))
    data_sets = opened(options.data).data_sets[: options.data_sets]
    results: dict[str, Any] = {}
    for method in options.methods.split(","):
        results[method] = run_method(method, options.data, data_sets, options.seeds, budgets)
        figures = results[method]
        shown = "  ".join(f"{b}: {figures['mean'][str(b)]:.4f} ({figures['median'][str(b)]:.3f})" for b in budgets)
        print(f"{method:<24} {shown}  {figures['seconds']} s", flush=True)
        if options.out:
            write_results(options.out, results, budgets, len(data_sets))


def write_results(path: Path, results: dict[str, Any], budgets: tuple[int, ...], num_data_sets: int) -> None:
    """Merge into the file, so that methods can be run one at a time."""
    before = json.loads(path.read_text(encoding="utf-8"))["results"] if path.exists() else {}
    versions = {name: metadata.version(name) for name in ("ray", "optuna", "numpy", "onnxruntime", "scipy")}
    write_json(
        path,
        {
            "budgets": budgets,
            "data_sets": num_data_sets,
            "python": platform.python_version(),
            "versions": versions,
            "results": {**before, **results},
        },
    )


if __name__ == "__main__":
    main()
