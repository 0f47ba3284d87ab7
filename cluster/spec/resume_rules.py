"""What a changed spec does to a training that has begun: the one table, which docs/reference/training-rules.md shows.

    same        the key cannot change a result: the training goes on, a finished one stays as it is
    goes on     the key extends the training or moves it elsewhere: it goes on from its checkpoint, and says so
    anew        any other key of `train`, `model` and `seed`, and the prepared rows: a training of its own

Invariant: a key that is not in the table starts anew, and makes another search, so that one that is added later is
never taken for harmless.

Covered: values, their effect, what differs between two specs. Not covered: which checkpoints there are
(trainers/launch/earlier.py).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from cluster.spec.run import RunSpec
from cluster.spec.train import TrainSpec

Effect = Literal["same", "goes on", "anew"]
SECTIONS = ("train", "model", "seed")  # of a spec, besides what the prepared rows come from


@dataclass(frozen=True)
class KeyRule:
    """Keys of `train`, with all that is below them, and what a change of them does."""

    keys: tuple[str, ...]
    effect: Effect
    why: str
    """Half a sentence, for the page and for whoever changes one of them."""
    comparable: bool = True
    """Whether values of a search's trials before and after the change can be compared."""


RULES: tuple[KeyRule, ...] = (
    KeyRule(("log_every_updates", "diagnostics_every_updates"), "same", "they set what is shown"),
    KeyRule(("checkpoint",), "same", "it sets when state is written and how much of it is kept"),
    KeyRule(
        (
            "faults.worker_restarts",
            "faults.preemptions",
            "faults.replacement_wait_s",
            "faults.collective_timeout_s",
        ),
        "same",
        "they set how often workers start again, and what is waited for",
    ),
    KeyRule(
        ("epochs",),
        "goes on",
        "the epochs that are left follow the schedule of the new length; anew where fewer are wanted than are trained, "
        "or where train.growth is linear over the epochs",
        comparable=False,
    ),
    KeyRule(
        ("workers", "batch_size_per_worker", "memory_per_worker_gib"),
        "goes on",
        "updates stay what they are, up to rounding, dropout's draws and batch norm by micro-batches",
    ),
    KeyRule(
        ("exchange.bucket_mib", "compile", "channels_last", "deterministic"),
        "goes on",
        "sums are made in another order, so that results differ by rounding",
    ),
    KeyRule(("early_stopping",), "goes on", "it judges all epochs anew, those that are trained too"),
    KeyRule(("faults.nonfinite_updates", "faults.rollbacks"), "goes on", "the new budget holds from here on"),
    KeyRule(
        ("callbacks",),
        "goes on",
        "they are called from here on; each has its state back, a new one starts without",
        comparable=False,
    ),
    KeyRule(("profile_updates",), "anew", "its first updates are what is recorded"),
)


def effect_of(path: str) -> Effect:
    """What a change of a dotted path of the spec does."""
    rule = _rule_of(path)
    return rule.effect if rule else "anew"


def is_comparable(path: str) -> bool:
    """Whether trials with different values of a dotted path can be compared."""
    rule = _rule_of(path)
    return rule is not None and rule.comparable


def why_of(path: str) -> str:
    """The table's half sentence; empty for what starts anew."""
    rule = _rule_of(path)
    return rule.why if rule else ""


def values_of(spec: RunSpec) -> dict[str, Any]:
    """Dotted path -> value of all that a training depends on, but for its rows and for what changes no result."""
    leaves = dict(_leaves(spec.model_dump(mode="json", include=set(SECTIONS)), ""))
    return {path: value for path, value in leaves.items() if effect_of(path) != "same"}


def lasting(values: Mapping[str, Any]) -> dict[str, Any]:
    """Those of `values_of` by which a training is the same one: a change of them starts another."""
    kept = {path: value for path, value in values.items() if effect_of(path) == "anew"}
    if values.get("train.growth.factor") is not None and not values.get("train.growth.milestones"):
        kept["train.epochs"] = values["train.epochs"]
    return kept


def without_neutral(train: TrainSpec) -> dict[str, Any]:
    """The section as JSON, without what cannot change a result."""
    return _pruned(train.model_dump(mode="json"), "train")


def differences(before: Mapping[str, Any], now: Mapping[str, Any]) -> dict[str, str]:
    """Dotted path -> `old -> new`, of all that differs, in the order of the paths."""
    paths = sorted(path for path in {*before, *now} if before.get(path) != now.get(path))
    return {path: f"{_shown(before.get(path))} -> {_shown(now.get(path))}" for path in paths}


def _rule_of(path: str) -> KeyRule | None:
    section, _, key = path.partition(".")
    if section != "train":
        return None
    return next((rule for rule in RULES for known in rule.keys if key == known or key.startswith(f"{known}.")), None)


def _leaves(value: Any, path: str) -> list[tuple[str, Any]]:
    if isinstance(value, dict) and value:
        return [leaf for key, item in value.items() for leaf in _leaves(item, f"{path}.{key}" if path else str(key))]
    return [(path, value)]


def _pruned(value: Any, path: str) -> Any:
    if not isinstance(value, dict):
        return value
    return {key: _pruned(item, f"{path}.{key}") for key, item in value.items() if effect_of(f"{path}.{key}") != "same"}


def _shown(value: Any) -> str:
    return "none" if value is None else str(value)
