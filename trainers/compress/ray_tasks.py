"""Graph recipes as Ray tasks, cached by (parent, recipe), resumable. The only file of this folder that imports ray.

Invariant: a finished task's folder is renamed into place as a whole, named by its digest; the same task is never
run twice, whether the driver was killed in between or not.

Covered: any number of tasks, a task whose worker dies (it is run once more, then reported, and the others go on).
Not covered: folders that a worker cannot see (the run folder lies on a file system that all nodes share).
"""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from cluster.atomic import new_folder
from trainers.compress.candidate import Candidate, GraphTask
from trainers.compress.graph_recipes import GATE, MODEL, OUTCOME, run_graph_recipe, task_digest

RETRIES = 1  # a worker that died of another process's memory use deserves a second try
DIGEST_CHARS = 16
TaskRunner = Callable[[GraphTask, Path], None]


def run_into(task: GraphTask, cache: Path) -> None:
    """Run one task into its folder of the cache."""
    with new_folder(task_folder(task, cache)) as folder:
        run_graph_recipe(task, folder)


def run_graph_tasks(
    proposed: list[Candidate], cache: Path, *, concurrency: int = 1, run: TaskRunner = run_into,
    ensure_ray: Callable[[], bool] | None = None,
) -> list[Candidate]:  # fmt: skip
    """The candidates, made or stopped, in the order given. What lies in the cache is not run again.

    More than one new task become Ray tasks, `concurrency` at a time, where `ensure_ray` gives a Ray (default: the
    session of this process, if it has one); else they run here.
    """
    tasks = [_graph_task(one) for one in proposed]
    new = [task for task in tasks if read_outcome(task, cache) is None]
    lost: dict[str, str] = {}
    if len(new) > 1 and concurrency > 1 and (ensure_ray or ray_is_up)():
        lost = _run_on_ray(new, cache, concurrency, run)
    else:
        for task in new:
            run(task, cache)
    return [_with_outcome(one, task, cache, lost) for one, task in zip(proposed, tasks, strict=True)]


def read_gate_outputs(made: Candidate) -> np.ndarray:
    """(N, C) outputs on the gate split, which its task has left beside the graph."""
    return np.load(made.file.with_name(GATE), allow_pickle=False)


def task_folder(task: GraphTask, cache: Path) -> Path:
    return cache / f"{task.recipe}-{task_digest(task)[:DIGEST_CHARS]}"


def read_outcome(task: GraphTask, cache: Path) -> dict[str, Any] | None:
    """What a finished task has noted, or None."""
    try:
        return json.loads((task_folder(task, cache) / OUTCOME).read_text(encoding="utf-8"))
    except FileNotFoundError:
        return None


def _graph_task(candidate: Candidate) -> GraphTask:
    assert isinstance(candidate.task, GraphTask), f"{candidate.name} is made from a graph"
    return candidate.task


def _with_outcome(proposed: Candidate, task: GraphTask, cache: Path, lost: dict[str, str]) -> Candidate:
    outcome = read_outcome(task, cache)
    if outcome is None:
        reason = f"the trial's worker died: {lost.get(task_digest(task), 'no outcome was written')}"
        return proposed.stopped(reason, {"proxies": None})
    notes = {**outcome["notes"], "proxies": outcome.get("proxies")}
    if outcome.get("stopped") is not None:
        return proposed.stopped(outcome["stopped"], notes)
    return proposed.made(task_folder(task, cache) / MODEL, notes=notes)


def ray_is_up() -> bool:
    """Whether a Ray session runs in this process."""
    import ray

    return ray.is_initialized()


def _run_on_ray(tasks: list[GraphTask], cache: Path, concurrency: int, run: TaskRunner) -> dict[str, str]:
    """Run tasks on workers; returns digest -> reason for those whose worker died."""
    import ray

    remote = ray.remote(num_cpus=1, max_retries=RETRIES)(run)
    waiting = list(tasks)
    running: dict[Any, GraphTask] = {}
    lost: dict[str, str] = {}
    try:
        while waiting or running:
            while waiting and len(running) < concurrency:
                task = waiting.pop(0)
                running[remote.remote(task, cache.resolve())] = task
            (done,), _ = ray.wait(list(running), num_returns=1)
            task = running.pop(done)
            try:
                ray.get(done)
            except ray.exceptions.RayTaskError:
                raise
            except ray.exceptions.RayError as error:
                lost[task_digest(task)] = " ".join(str(error).split())[:200]
    finally:
        for reference in running:
            ray.cancel(reference, force=True)
    return lost
