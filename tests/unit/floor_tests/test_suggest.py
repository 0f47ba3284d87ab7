"""A wrong key is answered with the right one, wherever it lies."""

from __future__ import annotations

import pytest

from cluster.errors import SpecError
from cluster.spec import parse_spec
from cluster.spec.suggest import SYNONYMS, all_paths

DATA = "data: {source: {kind: sklearn, dataset: digits}}\n"


def nearest(section: str) -> dict[str, str | None]:
    with pytest.raises(SpecError) as caught:
        parse_spec(f"version: 1\n{DATA}{section}\n")
    return {problem["path"]: problem["nearest"] for problem in caught.value.problems}


@pytest.mark.parametrize(
    ("section", "wrong", "right"),
    [
        ("train: {lr: 0.1}", "train.lr", "train.optimizer.learning_rate"),
        ("train: {learning_rate: 0.1}", "train.learning_rate", "train.optimizer.learning_rate"),
        ("learning_rate: 0.1", "learning_rate", "train.optimizer.learning_rate"),
        ("train: {optimizer: {lr: 0.1}}", "train.optimizer.lr", "train.optimizer.learning_rate"),
        ("train: {weight_decay: 0.1}", "train.weight_decay", "train.optimizer.weight_decay"),
        ("train: {batch_size: 32}", "train.batch_size", "train.batch_size_global"),
        ("epochs: 3", "epochs", "train.epochs"),
        ("train: {num_epochs: 3}", "train.num_epochs", "train.epochs"),
        ("train: {epoch: 3}", "train.epoch", "train.epochs"),
        ("train: {optimizer: {epochs: 3}}", "train.optimizer.epochs", "train.epochs"),
        ("model: {family: mlp, optimizer: {}}", "model.optimizer", "train.optimizer"),
        ("n_trials: 3", "n_trials", "search.trials"),
        ("training: {}", "training", "train"),
        ("trian: {}", "trian", "train"),
        ("train: {seed: 1}", "train.seed", "seed"),
    ],
)
def test_a_key_in_the_wrong_place_or_by_another_name_is_suggested(section: str, wrong: str, right: str) -> None:
    assert nearest(section)[wrong] == right


def test_a_key_of_another_family_is_not_answered_with_itself() -> None:
    assert nearest("model: {family: cnn, hidden: [3]}")["model.hidden"] != "model.hidden"


def test_what_is_near_nothing_gets_no_suggestion() -> None:
    assert nearest("train: {zzqx: 1}")["train.zzqx"] is None


def test_the_suggestion_stands_in_the_message() -> None:
    with pytest.raises(SpecError, match=r"train\.lr: unknown key; did you mean train\.optimizer\.learning_rate\?"):
        parse_spec(f"version: 1\n{DATA}train: {{lr: 0.1}}\n")


def test_every_synonym_means_a_key_that_exists() -> None:
    assert set(SYNONYMS.values()) <= {path.rpartition(".")[2] for path in all_paths()}
