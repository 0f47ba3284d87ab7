"""The rules of a search that need no data: which paths may vary, over which values, judged by what.

Invariant: every point that a search can propose makes a valid spec, because the ends of each domain are tried on the
spec itself; all broken rules are reported at once, a misspelt path with the nearest one.

Covered: `search` against the rest of the spec. Not covered: which point comes next (trainers/search).
"""

from __future__ import annotations

import difflib
from typing import Any

from cluster.errors import SpecError
from cluster.spec.batch_plan import check_division
from cluster.spec.load import override_spec, problem
from cluster.spec.run import RunSpec
from cluster.spec.search import Choice, Domain, IntUniform, SearchSpec
from cluster.spec.suggest import all_paths, nearest_key
from cluster.spec.train import EPOCH_METRICS, mode_of

SEARCHED_SECTIONS = ("train", "model")  # the prepared data and the bundle format stay the same for all trials
FIXED_PATHS = {
    "train.epochs": "it is the fidelity of a search: set search.epochs",
    "train.workers": "updates do not depend on the number of workers, and a trial trains with one",
    "model.family": "its other keys differ from family to family: run one search a family",
}
PROBE_INSIDE = 0.3719  # a point inside a range that is no round number: finds float ranges over integer keys
VALIDATION_METRICS = tuple(name for name in EPOCH_METRICS if name.startswith("validation."))


def search_problems(spec: RunSpec) -> list[dict[str, Any]]:
    """Every broken rule of `search`."""
    if spec.search is None:
        return []
    return [
        *_space_problems(spec, spec.search),
        *_start_problems(spec, spec.search),
        *_rule_problems(spec, spec.search),
    ]


def trial_epochs(spec: RunSpec, search: SearchSpec) -> int:
    """Epochs of a trial that is never stopped."""
    return spec.train.epochs if search.epochs == "auto" else search.epochs


def _space_problems(spec: RunSpec, search: SearchSpec) -> list[dict[str, Any]]:
    found = []
    for path, domain in search.space.items():
        where = f"search.space.{path}"
        section = path.split(".")[0]
        if path in FIXED_PATHS:
            found.append(problem(where, path, FIXED_PATHS[path]))
        elif section not in SEARCHED_SECTIONS:
            rule = f"a search may change {' and '.join(f'{name}.*' for name in SEARCHED_SECTIONS)} only"
            found.append(problem(where, path, rule, nearest=_searched_path(path)))
        elif section == "model" and spec.model.family == "auto":
            found.append(problem(where, path, "name model.family to search its keys: `auto` has none"))
        elif not isinstance(domain, Choice) and domain.low >= domain.high:
            found.append(problem(f"{where}.low", domain.low, f"must be below high ({domain.high})"))
        else:
            found += _value_problems(spec, path, domain)
    return found


def _searched_path(path: str) -> str | None:
    """The path of a searched section that was meant by one that lies in none of them."""
    meant = None if path in all_paths() else nearest_key(path.split("."), list(RunSpec.model_fields))
    return meant if meant and meant.startswith(tuple(f"{name}." for name in SEARCHED_SECTIONS)) else None


def _value_problems(spec: RunSpec, path: str, domain: Domain) -> list[dict[str, Any]]:
    """Problems of the extreme values of one domain, each rule once."""
    found: dict[str, dict[str, Any]] = {}
    for value in _extremes(domain):
        try:
            train = override_spec(spec, {path: value}).train
            check_division(train)
        except SpecError as error:
            for item in error.problems or [problem(path, value, error.rule)]:
                found.setdefault(item["rule"], item)
    return [_in_space(path, item) for item in found.values()]


def _in_space(path: str, item: dict[str, Any]) -> dict[str, Any]:
    """A problem of the spec that a point makes, as one of the path in `search.space`, with the nearest whole path."""
    where, nearest = f"search.space.{path}", item["nearest"]
    if item["rule"] != "unknown key":
        return {**item, "path": where, "text": f"search.space.{item['text']}"}
    whole = f"{nearest}{path.removeprefix(item['path'])}"
    nearest = whole if whole in all_paths() else nearest
    text = f"{where}: unknown key" + (f"; did you mean {nearest}?" if nearest else "")
    return {**item, "path": where, "nearest": nearest, "text": text}


def _start_problems(spec: RunSpec, search: SearchSpec) -> list[dict[str, Any]]:
    found = []
    for index, point in enumerate(search.start):
        where = f"search.start.{index}"
        unknown = [path for path in point if path not in search.space]
        for path in unknown:
            close = difflib.get_close_matches(path, list(search.space), n=1)
            rule = "this path is not in search.space"
            found.append(problem(f"{where}.{path}", point[path], rule, nearest=close[0] if close else None))
        if unknown:
            continue
        try:
            override_spec(spec, point)
        except SpecError as error:
            found += [{**item, "text": f"{where}.{item['text']}"} for item in error.problems]
    return found


def _extremes(domain: Domain) -> list[Any]:
    if isinstance(domain, Choice):
        return list(domain.values)
    if isinstance(domain, IntUniform):
        return [domain.low, domain.high]
    return [domain.low, domain.high, domain.low + PROBE_INSIDE * (domain.high - domain.low)]


def _rule_problems(spec: RunSpec, search: SearchSpec) -> list[dict[str, Any]]:
    found = []
    if search.metric not in VALIDATION_METRICS:
        rule = f"trials are compared on the validation split: {', '.join(VALIDATION_METRICS)}"
        same = f"validation.{search.metric.rpartition('.')[2]}"  # the right measure of another split
        found.append(problem("search.metric", search.metric, rule, nearest=same if same in VALIDATION_METRICS else None,
                             among=VALIDATION_METRICS))  # fmt: skip
    elif search.mode not in ("auto", mode := mode_of(search.metric)):
        found.append(problem("search.mode", search.mode, f"{search.metric} is better when it is {mode}imal"))
    epochs = trial_epochs(spec, search)
    if search.scheduler != "none" and search.grace_epochs > epochs:
        rule = f"must not be above the {epochs} epochs of a trial"
        found.append(problem("search.grace_epochs", search.grace_epochs, rule))
    return found
