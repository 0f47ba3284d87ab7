"""The search space: which dotted paths of the spec may vary, as Optuna distributions, and the point the user gave.

Invariant: every point that a search can propose makes a valid spec, because the ends of each domain are tried on
the spec before the search starts; all broken rules are reported at once.

Covered: checks, distributions, the current configuration as a point. Not covered: which point comes next (study.py).
"""

from __future__ import annotations

import json
from typing import Any

from optuna.distributions import (
    BaseDistribution,
    CategoricalDistribution,
    FloatDistribution,
    IntDistribution,
)

from cluster.errors import SpecError
from cluster.spec.load import override_spec
from cluster.spec.run import RunSpec
from cluster.spec.search import Choice, Domain, IntUniform, LogUniform, SearchSpec, Uniform

SEARCHED_SECTIONS = ("train", "model")  # the prepared data and the bundle format stay the same for all trials
FIXED_PATHS = {
    "train.epochs": "it is the fidelity of a search: set search.epochs",
    "train.workers": "results do not depend on the number of workers",
    "model.family": "its other keys differ from family to family: run one search a family",
}
JSON_MARK = "json:"
PROBE_INSIDE = 0.3719  # a point inside a range that is no round number: finds float ranges over integer keys


def check_search(spec: RunSpec) -> None:
    """Check `search` against the rest of the spec. Raises one SpecError that lists every problem."""
    if spec.search is None:
        return
    problems = [
        *_space_problems(spec, spec.search),
        *_start_problems(spec, spec.search),
        *_rule_problems(spec, spec.search),
    ]
    if not problems:
        return
    raise SpecError(
        "Cannot use the search",
        found=f"{len(problems)} problem{'s' if len(problems) != 1 else ''}:\n"
        + "\n".join(f"  {item['text']}" for item in problems),
        remedy="Mend these keys; `manta schema` prints the whole format.",
        details={"problems": problems},
    )


def distributions(search: SearchSpec) -> dict[str, BaseDistribution]:
    """Optuna's form of the space, in the order in which it was written."""
    return {path: _distribution(domain) for path, domain in search.space.items()}


def current_point(spec: RunSpec, search: SearchSpec) -> dict[str, Any]:
    """The values that the resolved spec has at the searched paths. They need not lie inside the space."""
    raw = spec.model_dump(mode="json")
    return {path: _value_at(raw, path) for path in search.space}


def contains(distribution: BaseDistribution, value: Any) -> bool:
    """Whether a value could have been proposed; a number just outside a range is outside."""
    value = encode(value)
    if isinstance(distribution, CategoricalDistribution):
        return any(value == choice and type(value) is type(choice) for choice in distribution.choices)
    if isinstance(value, bool) or not isinstance(value, int | float):
        return False
    assert isinstance(distribution, FloatDistribution | IntDistribution)
    return bool(distribution.low <= value <= distribution.high)


def encode(value: Any) -> Any:
    """A value in the form that Optuna takes: lists (the widths of layers) as JSON text, everything else as it is."""
    return JSON_MARK + json.dumps(value) if isinstance(value, list | tuple) else value


def decode(value: Any) -> Any:
    """Back to the spec's form."""
    marked = isinstance(value, str) and value.startswith(JSON_MARK)
    return json.loads(value.removeprefix(JSON_MARK)) if marked else value


def trial_epochs(spec: RunSpec, search: SearchSpec) -> int:
    """Epochs of a trial that is never stopped."""
    return spec.train.epochs if search.epochs == "auto" else search.epochs


def _distribution(domain: Domain) -> BaseDistribution:
    if isinstance(domain, Choice):
        return CategoricalDistribution([encode(value) for value in domain.values])
    if isinstance(domain, LogUniform):
        return FloatDistribution(domain.low, domain.high, log=True)
    if isinstance(domain, Uniform):
        return FloatDistribution(domain.low, domain.high)
    return IntDistribution(domain.low, domain.high)


def _space_problems(spec: RunSpec, search: SearchSpec) -> list[dict[str, Any]]:
    found = []
    for path, domain in search.space.items():
        where = f"search.space.{path}"
        section = path.split(".")[0]
        if path in FIXED_PATHS:
            found.append(_problem(where, path, FIXED_PATHS[path]))
        elif section not in SEARCHED_SECTIONS:
            rule = f"a search may change {' and '.join(f'{name}.*' for name in SEARCHED_SECTIONS)} only"
            found.append(_problem(where, path, rule))
        elif section == "model" and spec.model.family == "auto":
            found.append(_problem(where, path, "name model.family to search its keys: `auto` has none"))
        elif not isinstance(domain, Choice) and domain.low >= domain.high:
            found.append(_problem(f"{where}.low", domain.low, f"must be below high ({domain.high})"))
        else:
            found += _value_problems(spec, path, domain)
    return found


def _value_problems(spec: RunSpec, path: str, domain: Domain) -> list[dict[str, Any]]:
    """Problems of the extreme values of one domain, each rule once."""
    found: dict[str, dict[str, Any]] = {}
    for value in _extremes(domain):
        try:
            override_spec(spec, {path: value})
        except SpecError as error:
            for item in error.problems:
                found.setdefault(item["rule"], {**item, "path": f"search.space.{path}"})
    return [{**item, "text": f"search.space.{item['text']}"} for item in found.values()]


def _start_problems(spec: RunSpec, search: SearchSpec) -> list[dict[str, Any]]:
    found = []
    for index, point in enumerate(search.start):
        where = f"search.start.{index}"
        unknown = [path for path in point if path not in search.space]
        found += [_problem(f"{where}.{path}", point[path], "this path is not in search.space") for path in unknown]
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
    if not search.metric.startswith("validation."):
        rule = "trials are compared on the validation split: a name like validation.loss"
        found.append(_problem("search.metric", search.metric, rule))
    wanted = "min" if search.metric.endswith(("loss", "error", "mae", "mse", "rmse")) else "max"
    if search.mode != wanted:
        found.append(_problem("search.mode", search.mode, f"{search.metric} is better when it is {wanted}imal"))
    epochs = trial_epochs(spec, search)
    if search.scheduler != "none" and search.grace_epochs > epochs:
        rule = f"must not be above the {epochs} epochs of a trial"
        found.append(_problem("search.grace_epochs", search.grace_epochs, rule))
    return found


def _problem(path: str, value: Any, rule: str) -> dict[str, Any]:
    return {
        "path": path,
        "value": str(value),
        "rule": rule,
        "nearest": None,
        "text": f"{path}: {rule}, found {value!r}",
    }


def _value_at(raw: Any, path: str) -> Any:
    for key in path.split("."):
        raw = raw[key] if isinstance(raw, dict) else None
    return raw
