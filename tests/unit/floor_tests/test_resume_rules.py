"""What a changed spec does to a training that has begun, key by key."""

from __future__ import annotations

from typing import Any

import pytest

from cluster.pipeline.reuse import stage_digest
from cluster.pipeline.stages import STAGES
from cluster.spec.load import validate_spec
from cluster.spec.resume_rules import RULES, differences, effect_of, is_comparable, lasting, values_of
from cluster.spec.run import RunSpec
from cluster.spec.suggest import all_paths


def spec_with(**train: Any) -> RunSpec:
    raw = {"version": 1, "data": {"source": {"kind": "sklearn", "dataset": "digits"}}, "train": train}
    return validate_spec(raw)


def test_every_key_of_the_table_is_a_key_of_train() -> None:
    keys = [key for rule in RULES for key in rule.keys]
    assert len(keys) == len(set(keys))
    known = all_paths()
    assert [key for key in keys if not any(p == f"train.{key}" or p.startswith(f"train.{key}.") for p in known)] == []


@pytest.mark.parametrize(
    ("path", "effect"),
    [
        ("train.log_every_updates", "same"),
        ("train.checkpoint.keep_last", "same"),
        ("train.epochs", "goes on"),
        ("train.workers.max", "goes on"),
        ("train.faults.worker_restarts", "same"),
        ("train.faults.rollbacks", "goes on"),
        ("train.optimizer.learning_rate", "anew"),
        ("train.exchange.wire", "anew"),
        ("train.callbacks", "goes on"),
        ("train.max_updates", "anew"),
        ("train.a_key_of_tomorrow", "anew"),
        ("model.hidden", "anew"),
        ("seed", "anew"),
    ],
)
def test_effect_of_a_key(path: str, effect: str) -> None:
    assert effect_of(path) == effect


@pytest.mark.parametrize(
    ("path", "comparable"),
    [
        ("train.workers", True),
        ("train.diagnostics_every_updates", True),
        ("train.faults.rollbacks", True),
        ("train.early_stopping.patience", True),
        ("train.profile_updates", True),
        ("train.epochs", False),
        ("train.callbacks", False),
        ("train.optimizer.name", False),
        ("train.a_key_of_tomorrow", False),
        ("model.hidden", False),
        ("search.metric", False),
    ],
)
def test_whose_trials_can_be_compared(path: str, comparable: bool) -> None:
    assert is_comparable(path) is comparable


def test_what_is_the_same_is_in_no_digest() -> None:
    train = next(stage for stage in STAGES if stage.name == "train")
    digests = [
        stage_digest(train, spec_with(**values), {})
        for values in ({}, {"log_every_updates": 3, "checkpoint": {"keep_last": 5}}, {"workers": 2})
    ]
    assert digests[0] == digests[1] != digests[2]


@pytest.mark.parametrize(
    ("before", "now", "same"),
    [
        ({"workers": 1}, {"workers": {"min": 1, "max": 2}}, True),
        ({"epochs": 3}, {"epochs": 5}, True),
        ({"epochs": 3, "growth": {"factor": 2.0}}, {"epochs": 5, "growth": {"factor": 2.0}}, False),
        ({}, {"early_stopping": {"patience": 2}}, True),
        ({"ema": None}, {"ema": {"decay": 0.9}}, False),
        ({"optimizer": {"learning_rate": 0.1}}, {"optimizer": {"learning_rate": 0.2}}, False),
    ],
)
def test_only_what_starts_anew_makes_another_training(before: dict, now: dict, same: bool) -> None:
    one, other = values_of(spec_with(**before)), values_of(spec_with(**now))
    assert differences(one, other)
    assert (lasting(one) == lasting(other)) is same
