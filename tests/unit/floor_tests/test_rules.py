"""Every door asks the same rules before it reads any data, and tells all that are broken at once."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import yaml

from cluster.cli.app import call
from cluster.errors import SpecError
from cluster.spec.load import validate_spec
from cluster.spec.rules import spec_problems, validate_checked

DIGITS = {"source": {"kind": "sklearn", "dataset": "digits"}}
TABLE = {"source": {"kind": "csv", "path": "t.csv"}}
QUICKSTART = Path(__file__).parents[3] / "configs" / "quickstart.yaml"
SEARCH = {"space": {"train.optimizer.learning_rate": {"kind": "log_uniform", "low": 1e-4, "high": 0.1}}}
MISSPELT = {
    "train.optimizer.learing_rate": {"kind": "log_uniform", "low": 1e-4, "high": 0.1},
    "train.batch_size_global": {"kind": "choice", "values": [64, 128]},
}


def found(data: dict[str, Any], **sections: Any) -> set[str]:
    return {item["path"] for item in spec_problems(validate_spec({"version": 1, "data": data, **sections}))}


@pytest.fixture
def misspelt(tmp_path: Path) -> str:
    """The quickstart with a slip of the pen in its search, in a folder of its own."""
    raw = yaml.safe_load(QUICKSTART.read_text())
    raw["search"] = {**(raw.get("search") or {}), "space": MISSPELT}
    path = tmp_path / "spec.yaml"
    path.write_text(yaml.safe_dump(raw))
    return str(path)


@pytest.mark.parametrize(
    "verb",
    [["check"], ["explain"], ["run", "--runs-dir", "runs"], ["train", "--runs-dir", "runs"], ["submit"]],
    ids=lambda verb: verb[0],
)
def test_every_door_refuses_a_misspelt_path_of_a_search(
    verb: list[str], misspelt: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    assert call([verb[0], misspelt, *verb[1:]]) == 2
    said = capsys.readouterr().err
    assert "search.space.train.optimizer.learing_rate: unknown key" in said
    assert "did you mean train.optimizer.learning_rate?" in said
    assert not (tmp_path / "runs").exists()


def test_what_is_wrong_is_told_for_programs_too(misspelt: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert call(["check", misspelt, "--json"]) == 2
    captured = capsys.readouterr()
    problems = json.loads(captured.out or captured.err)["error"]["details"]["problems"]
    assert [item["nearest"] for item in problems] == ["train.optimizer.learning_rate"]


def test_wrong_keys_and_broken_rules_are_told_together() -> None:
    raw = {"version": 1, "data": DIGITS, "train": {"epochs": 0, "lr": 1}, "search": {"space": MISSPELT}}
    with pytest.raises(SpecError) as caught:
        validate_checked(raw, origin="t")
    assert [item["path"] for item in caught.value.problems] == [
        "train.epochs",
        "train.lr",
        "search.space.train.optimizer.learing_rate",
    ]
    assert raw["train"] == {"epochs": 0, "lr": 1}  # what was written stays as it was


def test_defaults_and_every_kind_of_source_break_no_rule() -> None:
    for source in (
        DIGITS["source"],
        TABLE["source"],
        {"kind": "numpy", "inputs": "x.npy", "targets": "y.npy"},
        {"kind": "image_folder", "path": "images"},
        {"kind": "text_files", "path": "texts"},
        {"kind": "python", "function": "a:b"},
    ):
        assert found({"source": source}) == set()


@pytest.mark.parametrize(
    ("data", "sections", "path"),
    [
        (TABLE, {"model": {"family": "cnn"}}, "model.family"),
        (TABLE, {"model": {"family": "transformer"}}, "model.family"),
        (TABLE, {"train": {"augment": {"shift_pixels": 2}}}, "train.augment.shift_pixels"),
        (TABLE, {"export": {"fuse": ["normalize"]}}, "export.fuse"),
        ({**DIGITS, "drop_columns": ["a"]}, {}, "data.drop_columns"),
        ({**DIGITS, "balance": {"method": "smote"}}, {}, "data.balance.method"),
        ({**DIGITS, "quality": {"fail_on": "error"}}, {}, "data.quality.fail_on"),
        ({**TABLE, "task": "regression", "balance": {"method": "over"}}, {}, "data.balance"),
        ({**TABLE, "task": "regression"}, {"train": {"augment": {"mixup_alpha": 0.2}}}, "train.augment.mixup_alpha"),
        ({**TABLE, "task": "regression"}, {"export": {"fuse": ["softmax"]}}, "export.fuse"),
        ({**TABLE, "split": {"validation": 0.5, "test": 0.5}}, {}, "data.split"),
        ({**TABLE, "split": {"train": 0.9, "test": 0.5}}, {}, "data.split"),
        ({**TABLE, "split": {"by_hash": True, "test": 500}}, {}, "data.split.by_hash"),
        (TABLE, {"train": {"workers": 4, "batch_size_global": 2}}, "train.batch_size_global"),
        (TABLE, {"train": {"best": {"metric": "validation.acuracy"}}}, "train.best.metric"),
        (TABLE, {"train": {"best": {"metric": "validation.auc"}}}, "train.best.metric"),
        (TABLE, {"train": {"best": {"metric": "validation.accuracy", "mode": "min"}}}, "train.best.mode"),
        (TABLE, {"search": {**SEARCH, "metric": "validation.accuracy", "mode": "min"}}, "search.mode"),
        ({**TABLE, "task": "regression"}, {"train": {"best": {"metric": "validation.accuracy"}}}, "train.best.metric"),
        ({**TABLE, "task": "classification"}, {"search": {**SEARCH, "metric": "validation.rmse"}}, "search.metric"),
    ],
)
def test_a_rule_that_needs_no_data_is_told_before_any_is_read(data: dict, sections: dict, path: str) -> None:
    assert found(data, **sections) == {path}


def test_what_judges_epochs_and_trials_needs_no_mode() -> None:
    accuracy = {"metric": "validation.accuracy"}
    assert found(TABLE, train={"best": accuracy}, search={**SEARCH, **accuracy}) == set()


def test_a_share_of_the_test_split_is_not_used_beside_a_test_file() -> None:
    split = {"validation": 0.5, "test": 0.5, "calibration": 0, "gate": 0}
    assert found({**TABLE, "split": split}) == {"data.split"}
    assert found({"source": {**TABLE["source"], "test_path": "u.csv"}, "split": split}) == set()


@pytest.mark.parametrize("share", [-0.1, 1.5, -3])
def test_a_share_is_a_fraction_or_a_number_of_rows(share: float) -> None:
    with pytest.raises(SpecError, match=r"data\.split\.test: must be a fraction between 0 and 1, or a whole number"):
        validate_spec({"version": 1, "data": {**TABLE, "split": {"test": share}}})


@pytest.mark.parametrize(
    ("train", "path", "words"),
    [
        ({"optimizer": {"name": "sgd", "betas": [0.9, 0.99]}}, "train.optimizer.betas", "sgd has no such constant"),
        ({"optimizer": {"momentum": 0.5}}, "train.optimizer.momentum", "adamw has no such constant"),
        ({"optimizer": {"options": {"a": 1}}}, "train.optimizer.options", "adamw has no such constant"),
        ({"optimizer": {"name": "a.b:c", "eps": 1e-3}}, "train.optimizer.eps", "options"),
        ({"optimizer": {"name": "schedule_free"}}, "train.schedule.name", "set it to constant"),
        (
            {"optimizer": {"name": "schedule_free"}, "schedule": {"name": "constant"}, "ema": {}},
            "train.ema",
            "leave out",
        ),
        ({"schedule": {"eta_min": 0.1}}, "train.schedule.eta_min", "above train.optimizer.learning_rate"),
    ],
)
def test_an_optimizer_is_asked_for_what_it_has(train: dict[str, Any], path: str, words: str) -> None:
    (problem,) = spec_problems(validate_spec({"version": 1, "data": DIGITS, "train": train}))
    assert problem["path"] == path
    assert words in problem["text"]


@pytest.mark.parametrize(
    ("train", "words"),
    [
        ({"optimizer": {"name": "adamx"}}, "did you mean adam"),
        ({"schedule": {"name": "cosin"}}, "did you mean cosine"),
        ({"callbacks": ["my_module"]}, "must be module:name"),
        ({"schedule": {"warmup_updates": 3, "warmup_epochs": 1.0}}, "not both"),
        ({"schedule": {"name": "step", "eta_min": 0.0}}, "set eta_min above 0"),
        ({"optimizer": {"groups": [{"match": "head.*", "learning_rate": 0.1}]}}, "unknown key"),
        ({"max_steps": 5}, "did you mean train.max_updates"),
    ],
)
def test_a_misspelt_optimizer_or_schedule_names_the_nearest(train: dict[str, Any], words: str) -> None:
    with pytest.raises(SpecError) as caught:
        validate_spec({"version": 1, "data": DIGITS, "train": train})
    assert words in caught.value.message
