"""Which points a search tries first: the configuration as written, the user's own points, winners of other runs.

With few trials a model knows nothing yet, and what is known from elsewhere is worth more than chance: on LCBench a
portfolio from other data sets halves the regret of ten trainings (benchmarks/search).

Invariant: the configuration as written is always first; every point is valid for the spec; no point stands twice.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from cluster.errors import SpecError
from cluster.spec.load import override_spec
from cluster.spec.resolve import ResolvedRun
from cluster.spec.search import SearchSpec
from cluster.store.run_folder import RunFolder, list_runs
from cluster.store.stage_facts import SearchFacts
from trainers.search.space import contains, current_point, distributions

Start = tuple[str, dict[str, Any]]


def starting_points(resolved: ResolvedRun, search: SearchSpec, run: RunFolder | None = None) -> tuple[Start, ...]:
    """(source, values) of the first trials, at most as many as the search has."""
    current = current_point(resolved.spec, search)
    points: list[Start] = [("current", current)]
    points += [("start", {**current, **point}) for point in search.start]
    if search.transfer and run is not None:
        points += [("transfer", values) for values in winners_beside(run, resolved, search)]
    kept: list[Start] = []
    for source, values in points:
        if all(values != other for _, other in kept):
            kept.append((source, values))
    return tuple(kept[: search.trials])


def winners_beside(run: RunFolder, resolved: ResolvedRun, search: SearchSpec) -> list[dict[str, Any]]:
    """Best points of other runs in this folder, newest first: same paths, same family, same optimizer."""
    found: list[dict[str, Any]] = []
    for other in list_runs(Path(run.path).parent):
        if other.path == run.path or len(found) >= search.transfer:
            continue
        values = _winner(other, resolved, search)
        if values is not None and values not in found:
            found.append(values)
    return found


def _winner(other: RunFolder, resolved: ResolvedRun, search: SearchSpec) -> dict[str, Any] | None:
    facts = SearchFacts.of(other.records())
    theirs = other.read_resolved() if facts else None
    if facts is None or theirs is None:
        return None
    alike = (
        theirs.spec.model.family == resolved.spec.model.family
        and theirs.spec.train.optimizer.name == resolved.spec.train.optimizer.name
    )
    values = facts.best
    if not alike or set(values) != set(search.space):
        return None
    space = distributions(search)
    if not all(contains(space[path], value) for path, value in values.items()):
        return None
    try:
        override_spec(resolved.spec, values)
    except SpecError:
        return None
    return {path: values[path] for path in search.space}
