"""Graph recipes as Ray tasks: in other processes, cached by (parent, recipe), unharmed by a worker that is killed."""

from __future__ import annotations

import os
import shutil
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from cluster.atomic import new_folder, sha256_file, write_json
from cluster.spec.compress import CompressSpec
from trainers.compress.candidate import Candidate, GraphTask
from trainers.compress.graph_recipes import OUTCOME, task_digest
from trainers.compress.ray_tasks import run_graph_tasks, run_into, task_folder

RECIPES = ("int8_dynamic", "int8_static", "int8_weight_only")


@pytest.fixture
def propose(digits_graph: Path, prepared_digits: Any) -> Callable[..., list[Candidate]]:
    def make(parent: Path = digits_graph, **section: Any) -> list[Candidate]:
        folder = prepared_digits.folder
        data, digest = sha256_file(folder / "dataset.json"), sha256_file(parent)
        spec = CompressSpec.model_validate(section)
        tasks = [GraphTask(recipe, parent, digest, folder, data, spec) for recipe in RECIPES]
        return [Candidate(task.recipe, task.recipe, precision="int8", task=task) for task in tasks]

    return make


def die_once(task: GraphTask, cache: Path) -> None:
    """The worker is killed in the middle of its first static trial, as the kernel does when memory is short."""
    (mark := cache / "killed").parent.mkdir(parents=True, exist_ok=True)
    with new_folder(task_folder(task, cache)) as folder:
        (folder / "model.onnx").write_bytes(b"half a file")
        if task.recipe == "int8_static" and not mark.exists():
            mark.touch()
            os.kill(os.getpid(), signal.SIGKILL)
        write_json(folder / OUTCOME, {"recipe": task.recipe, "notes": {"pid": os.getpid()}, "stopped": "a test"})


def die_always(task: GraphTask, cache: Path) -> None:
    if task.recipe == "int8_static":
        os.kill(os.getpid(), signal.SIGKILL)
    run_into(task, cache)


def test_a_task_whose_worker_is_killed_is_run_once_more(ray_local: str, propose: Any, tmp_path: Path) -> None:
    found = run_graph_tasks(propose(), tmp_path / "trials", concurrency=2, run=die_once)
    assert [(one.state, one.reason) for one in found] == [("stopped", "a test")] * 3
    assert os.getpid() not in {one.notes["pid"] for one in found}
    assert (tmp_path / "trials" / "killed").exists()


def test_a_task_that_kills_every_worker_is_reported_and_only_it_is_made_again(
    ray_local: str, propose: Any, tmp_path: Path
) -> None:
    proposed, cache = propose(), tmp_path / "trials"
    found = run_graph_tasks(proposed, cache, concurrency=2, run=die_always)
    dynamic, static, weights = found
    assert [one.state for one in found] == ["made", "stopped", "made"]
    assert "worker died" in static.reason
    assert not task_folder(static.task, cache).exists()
    before = {one.file: one.file.stat().st_mtime_ns for one in (dynamic, weights)}
    again = run_graph_tasks(proposed, cache, concurrency=2)
    assert [one.state for one in again] == ["made"] * 3
    assert {one.file: one.file.stat().st_mtime_ns for one in (again[0], again[2])} == before


def test_the_cache_knows_parent_recipe_and_what_of_the_spec_changes_the_file(
    propose: Any, digits_graph: Path, tmp_path: Path
) -> None:
    other = tmp_path / "other.onnx"
    shutil.copyfile(digits_graph, other)

    def digests_of(proposed: list[Candidate]) -> set[str]:
        return {task_digest(one.task) for one in proposed}

    digests = digests_of(propose())
    assert len(digests) == len(RECIPES)
    assert digests_of(propose(other)) == digests  # the bytes count, not the path
    assert digests_of(propose(target={"threads": 2}, concurrency=1)) == digests
    assert not digests & digests_of(propose(calibration_rows=50))
    other.write_bytes(digits_graph.read_bytes() + b"\x12\x00")
    assert not digests & digests_of(propose(other))


def test_a_search_that_was_killed_goes_on_from_its_finished_tasks(make_search: Any, digits_graph: Path) -> None:
    section = {"recipes": ["int8_static", "int8_weight_only"]}
    first = make_search(recipes=["int8_weight_only"])
    first.try_graph_recipes(first.baseline)
    search = make_search(**section)
    made = {path.name: path.stat().st_mtime_ns for path in search.cache.iterdir()}
    found = search.try_graph_recipes(search.baseline)
    assert [one.recipe for one in found] == ["int8_static", "int8_weight_only"]
    assert len(made) == 1
    assert made.items() <= {path.name: path.stat().st_mtime_ns for path in search.cache.iterdir()}.items()


def test_dearer_recipes_are_tried_only_where_the_cheaper_ones_have_not_decided(
    make_search: Any, digits_graph: Path
) -> None:
    recipes = ["int8_static", "int8_weight_only", "int8_static_percentile"]
    search = make_search(recipes=recipes, budget={"max_drop": 0.2}, target={"minimize": "size"}, max_class_drop=1.0)
    assert [one.recipe for one in search.try_graph_recipes(search.baseline)] == recipes[:2]
    assert search.skipped == [
        {
            "name": "int8_static_percentile",
            "recipe": "int8_static_percentile",
            "reason": "static INT8 keeps the budget without it",
        }
    ]
    everything = make_search(recipes=recipes, budget={"max_drop": 0.2})
    everything.exhaustive = True
    assert [one.recipe for one in everything.try_graph_recipes(everything.baseline)] == recipes


def test_on_a_made_network_only_recipes_that_were_accepted_before_are_tried(
    make_search: Any, digits_graph: Path
) -> None:
    recipes = ["int8_static", "int8_weight_only"]
    search = make_search(recipes=recipes, budget={"max_drop": 0.2})
    first = search.try_graph_recipes(search.baseline)
    search.candidates = [one.decided(one.recipe == "int8_static", one.reason) for one in first]
    again = search.try_graph_recipes(Candidate("prune50", "prune").made(digits_graph))
    assert [one.name for one in again] == ["prune50_int8_static"]
    assert search.skipped[0]["name"] == "prune50_int8_weight_only"
