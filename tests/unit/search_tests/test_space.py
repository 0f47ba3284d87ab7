"""A search that is checked can be run: no proposal of it makes an invalid spec."""

from __future__ import annotations

from typing import Any

import pytest

from cluster.errors import SpecError
from cluster.spec.load import override_spec, validate_spec
from cluster.spec.resolve import DataFacts, HostFacts, resolve
from cluster.spec.run import RunSpec
from trainers.search.space import check_search, contains, current_point, distributions, trial_epochs

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
            "train": {"epochs": 6, "batch_size_global": 64},
            "search": {"space": space, **search},
        }
    )


def problems(spec: RunSpec) -> list[dict[str, Any]]:
    with pytest.raises(SpecError) as caught:
        check_search(spec)
    return caught.value.problems


def test_a_good_search_passes() -> None:
    check_search(spec_with(SPACE))


def test_no_search_passes() -> None:
    check_search(spec_with(SPACE).model_copy(update={"search": None}))


def test_every_broken_rule_is_reported_at_once_with_its_path() -> None:
    space = {
        "train.optimizer.lerning_rate": {"kind": "log_uniform", "low": 1e-4, "high": 1e-1},
        "train.batch_size_global": {"kind": "uniform", "low": 16.0, "high": 64.0},
        "train.epochs": {"kind": "int_uniform", "low": 1, "high": 5},
        "data.target": {"kind": "choice", "values": ["a"]},
        "train.clip_norm": {"kind": "uniform", "low": 2.0, "high": 1.0},
    }
    found = {item["path"] for item in problems(spec_with(space, mode="max", grace_epochs=9))}
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
    assert "name model.family" in problems(spec)[0]["rule"]


def test_a_misspelt_path_names_the_nearest_key() -> None:
    space = {"train.optimizer.lerning_rate": {"kind": "choice", "values": [0.1]}}
    assert problems(spec_with(space))[0]["nearest"] == "train.optimizer.learning_rate"


@pytest.mark.parametrize("value", [0, -8, 2.5, "many"])
def test_a_choice_that_the_spec_refuses_is_a_problem(value: Any) -> None:
    space = {"train.batch_size_global": {"kind": "choice", "values": [32, value]}}
    assert problems(spec_with(space))


def test_trials_are_compared_on_the_validation_split_only() -> None:
    assert problems(spec_with(SPACE, metric="test.loss"))[0]["path"] == "search.metric"


def test_the_current_point_holds_the_values_as_written() -> None:
    spec = spec_with({**SPACE, "model.hidden": {"kind": "choice", "values": [[8], [16]]}})
    assert spec.search is not None
    point = current_point(spec, spec.search)
    assert point == {"train.optimizer.learning_rate": 3e-3, "train.batch_size_global": 64, "model.hidden": [16]}
    space = distributions(spec.search)
    assert not contains(space["train.batch_size_global"], 64)
    assert contains(space["model.hidden"], [16])


def test_trials_have_the_epochs_of_training_unless_told() -> None:
    spec = spec_with(SPACE)
    assert spec.search is not None
    assert trial_epochs(spec, spec.search) == 6
    assert trial_epochs(spec, spec.search.model_copy(update={"epochs": 2})) == 2


def test_a_micro_batch_that_was_auto_follows_the_batch_that_a_search_found() -> None:
    """Else a search from 64 to 512 would train with eight times the accumulation that the memory asks for."""
    host = HostFacts(cpu_cores=2, memory_bytes=8 << 30)
    data = DataFacts(task="classification", layout="array", num_rows=999, num_rows_train=900, source_digest="x")
    auto = resolve(spec_with(SPACE), name="x", host=host, data=data)
    assert auto.batch.batch_size_per_worker == 32
    larger = auto.with_values({"train.batch_size_global": 256})
    assert (larger.batch.batch_size_per_worker, larger.batch.accumulation_steps) == (128, 1)
    fixed = resolve(override_spec(spec_with(SPACE), {"train.batch_size_per_worker": 8}), name="x", host=host, data=data)
    assert fixed.with_values({"train.batch_size_global": 256}).batch.accumulation_steps == 16
