"""Callbacks of the user's: their classes, and their state as JSON.

Invariant: what `state_dict` returns is in every checkpoint of the run, and `load_state_dict` is given it back before
the next call, after a resume and after a rollback.

Covered: loading, which worker has which. Not covered: when they are called (trainers/loop/callbacks.py).
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from cluster.errors import ModelError, SpecError
from cluster.spec.train import CallbackSpec
from trainers.loop.parts.named import load_named

METHODS = ("after_update", "after_epoch", "after_checkpoint")
RANKS = ("first", "all")


@dataclass(frozen=True)
class Loaded:
    """A callback that this worker calls."""

    key: str
    """Its name in the spec; `name#2` where it is there twice."""
    callback: Any


def load_callbacks(specs: Sequence[str | CallbackSpec], rank: int) -> list[Loaded]:
    """Those that worker `rank` calls. Raises SpecError, and what their classes raise."""
    found: list[Loaded] = []
    names: list[str] = []
    for index, spec in enumerate(specs):
        name, arguments = (spec, {}) if isinstance(spec, str) else (spec.name, spec.arguments)
        names.append(name)
        callback = load_named(name, f"train.callbacks.{index}")(**arguments)
        ranks = getattr(callback, "ranks", "first")
        _check(name, callback, ranks)
        if ranks == "all" or rank == 0:
            count = names.count(name)
            found.append(Loaded(name if count == 1 else f"{name}#{count}", callback))
    return found


def _check(name: str, callback: Any, ranks: Any) -> None:
    attempted = f"Cannot use the callback {name}"
    if ranks not in RANKS:
        raise SpecError(
            attempted, found=f"its attribute ranks is {ranks!r}", rule=f"it is one of {', '.join(RANKS)}",
            remedy="Set `ranks = \"all\"` in the class to have it on every worker.",
        )  # fmt: skip
    if not any(callable(getattr(callback, method, None)) for method in METHODS):
        raise SpecError(
            attempted, found="it has none of the methods that are called", rule=f"these are {', '.join(METHODS)}",
            remedy="Define one of them.",
        )  # fmt: skip


def states_of(loaded: Sequence[Loaded]) -> str:
    """JSON of the states of those that have one, by key. Raises ModelError for what is no JSON."""
    states: dict[str, Any] = {}
    for each in loaded:
        if callable(take := getattr(each.callback, "state_dict", None)):
            states[each.key] = take()
            try:
                json.dumps(states[each.key])
            except (TypeError, ValueError) as error:
                raise ModelError(
                    f"Cannot keep the state of the callback {each.key}", found=str(error),
                    rule="state_dict returns what JSON holds: numbers, texts, lists and mappings of them",
                    remedy="Convert tensors and arrays by .tolist().",
                ) from None  # fmt: skip
    return json.dumps(states)


def load_states(loaded: Sequence[Loaded], states: Mapping[str, Any]) -> None:
    """Give each its state back; one without is new in the spec."""
    for each in loaded:
        if each.key in states and callable(give := getattr(each.callback, "load_state_dict", None)):
            give(states[each.key])
