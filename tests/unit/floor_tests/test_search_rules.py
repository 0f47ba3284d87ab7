"""A search that is checked can be run: no proposal of it makes an invalid spec."""

from __future__ import annotations

from typing import Any

import pytest

from cluster.spec.load import override_spec, validate_spec
from cluster.spec.run import RunSpec
from cluster.spec.search_rules import search_problems, trial_epochs

SPACE = {
    "train.optimizer.learning_rate": {"kind": "log_uniform", "low": 1e-4, "high": 1e-1},
    "train.batch_size_global": {"kind": "choice", "values": [16, 32]},
}


def spec_with(space: dict[str, Any], **search: Any) -> RunSpec:
    return validate_spec(
        {
            "version": 1,
            "data": {"source": {"kind": "sklearn", "dataset": "digits"}},
            "model": {"family": "mlp", "hidden": [16]},
            "train": {"epochs": 6, "batch_size_global": 64, "workers": 4},
            "search": {"space": space, **search},
        }
    )


def nearest(path: str) -> Any:
    (found,) = search_problems(spec_with({path: {"kind": "choice", "values": [0.1]}}))
    assert path in found["text"]
    return found["nearest"]


def test_a_good_search_passes_and_so_does_none() -> None:
    assert search_problems(spec_with(SPACE)) == []
    assert search_problems(spec_with(SPACE).model_copy(update={"search": None})) == []


def test_every_broken_rule_is_reported_at_once_with_its_path() -> None:
    space = {
        "train.optimizer.lerning_rate": {"kind": "log_uniform", "low": 1e-4, "high": 1e-1},
        "train.batch_size_global": {"kind": "uniform", "low": 16.0, "high": 64.0},
        "train.epochs": {"kind": "int_uniform", "low": 1, "high": 5},
        "data.target": {"kind": "choice", "values": ["a"]},
        "train.clip_norm": {"kind": "uniform", "low": 2.0, "high": 1.0},
    }
    found = {item["path"] for item in search_problems(spec_with(space, mode="max", grace_epochs=9))}
    assert found == {
        "search.space.train.optimizer.lerning_rate",
        "search.space.train.batch_size_global",
        "search.space.train.epochs",
        "search.space.data.target",
        "search.space.train.clip_norm.low",
        "search.mode",
        "search.grace_epochs",
    }


def test_keys_of_a_family_that_is_not_named_cannot_be_searched() -> None:
    spec = override_spec(
        spec_with({"model.dropout": {"kind": "choice", "values": [0.1]}}), {"model": {"family": "auto"}}
    )
    assert "name model.family" in search_problems(spec)[0]["rule"]


@pytest.mark.parametrize(
    ("path", "right"),
    [
        ("train.optimizer.learing_rate", "train.optimizer.learning_rate"),
        ("train.optmizer.learning_rate", "train.optimizer.learning_rate"),
        ("train.lr", "train.optimizer.learning_rate"),
        ("learning_rate", "train.optimizer.learning_rate"),
        ("optimizer.learning_rate", "train.optimizer.learning_rate"),
        ("trian.clip_norm", "train.clip_norm"),
        ("model.dropuot", "model.dropout"),
        ("data.target", None),  # it is a path, and none that a search may change
    ],
)
def test_a_misspelt_path_names_the_nearest_one(path: str, right: str | None) -> None:
    assert nearest(path) == right


@pytest.mark.parametrize("value", [0, -8, 2.5, "many", 2])
def test_a_choice_that_the_spec_refuses_is_a_problem(value: Any) -> None:
    """Two samples are fewer than the four workers."""
    space = {"train.batch_size_global": {"kind": "choice", "values": [32, value]}}
    (found,) = search_problems(spec_with(space))
    assert found["path"] == "search.space.train.batch_size_global"


def test_a_starting_point_outside_the_space_names_the_nearest_path() -> None:
    (found,) = search_problems(spec_with(SPACE, start=[{"train.optimizer.lr": 0.1}]))
    assert found["nearest"] == "train.optimizer.learning_rate"


def test_a_start_point_outside_the_space_or_invalid_is_a_problem() -> None:
    found = search_problems(spec_with(SPACE, start=[{"train.clip_norm": 1.0}, {"train.optimizer.learning_rate": -1.0}]))
    assert [item["text"].split(":")[0] for item in found] == [
        "search.start.0.train.clip_norm",
        "search.start.1.train.optimizer.learning_rate",
    ]


@pytest.mark.parametrize(
    ("metric", "near"), [("test.loss", "validation.loss"), ("validation.acuracy", "validation.accuracy"), ("f", None)]
)
def test_trials_are_compared_by_a_metric_of_the_validation_split(metric: str, near: str | None) -> None:
    (found,) = search_problems(spec_with(SPACE, metric=metric))
    assert (found["path"], found["nearest"]) == ("search.metric", near)


def test_trials_have_the_epochs_of_training_unless_told() -> None:
    spec = spec_with(SPACE)
    assert spec.search is not None
    assert trial_epochs(spec, spec.search) == 6
    assert trial_epochs(spec, spec.search.model_copy(update={"epochs": 2})) == 2
