"""The search space: which dotted paths of the spec may vary, as Optuna distributions, and the point the user gave.

Invariant: every point that a search can propose makes a valid spec: cluster/spec/search_rules.py has tried the ends of
each domain.

Covered: distributions, the current configuration as a point. Not covered: which point comes next (study.py).
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

from cluster.spec.run import RunSpec
from cluster.spec.search import Choice, Domain, LogUniform, SearchSpec, Uniform

JSON_MARK = "json:"


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


def _distribution(domain: Domain) -> BaseDistribution:
    if isinstance(domain, Choice):
        return CategoricalDistribution([encode(value) for value in domain.values])
    if isinstance(domain, LogUniform):
        return FloatDistribution(domain.low, domain.high, log=True)
    if isinstance(domain, Uniform):
        return FloatDistribution(domain.low, domain.high)
    return IntDistribution(domain.low, domain.high)


def _value_at(raw: Any, path: str) -> Any:
    for key in path.split("."):
        raw = raw[key] if isinstance(raw, dict) else None
    return raw
