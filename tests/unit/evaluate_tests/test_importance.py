"""Importance of raw columns: what the network does not read is worth nothing, and a column moves as a whole."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from cluster.bundle.transforms import Block, Column, Output, Transforms
from cluster.bundle.transforms.steps import Impute, MissingIndicator, OneHot, PiecewiseLinear
from tests.unit.data_tests.making import prepare, run_spec, write_table
from tests.unit.evaluate_tests.tables import exclusive_or, table
from trainers.evaluate import importance
from trainers.evaluate.importance import column_features, permutation_importance

NUMBERS = ("age", "size")
BLOCKS = (
    Block(columns=NUMBERS, steps=(Impute(values=(0.0, 0.0)),), features=NUMBERS),
    Block(
        columns=NUMBERS,
        steps=(PiecewiseLinear(edges=((0.0, 1.0, 2.0), (0.0, 1.0))),),
        features=("age bin 0", "age bin 1", "size bin 0"),
    ),
    Block(columns=("size",), steps=(MissingIndicator(),), features=("size is missing",)),
    Block(columns=("color",), steps=(OneHot(categories=("red", "blue")),), features=("color=red", "color=blue")),
)
COLUMNS = (*(Column(name=name, kind="number") for name in NUMBERS), Column(name="color", kind="text"))


class Reads(nn.Module):
    """Answers by the first feature alone."""

    def forward(self, features: torch.Tensor) -> torch.Tensor:
        return torch.stack([-4 * features[:, 0], 4 * features[:, 0]], dim=1)


class OneHotOnly(nn.Module):
    """Fails where the last two features are not those of one category."""

    def forward(self, features: torch.Tensor) -> torch.Tensor:
        assert torch.equal(features[:, -2:].sum(dim=1), torch.ones(len(features)))
        return features[:, -2:] * 5


def test_all_features_of_a_column_are_found_also_after_selection() -> None:
    whole = Transforms(columns=COLUMNS, outputs=(Output(name="features", blocks=BLOCKS),))
    assert column_features(whole) == {
        "age": {"features": [0, 2, 3]},
        "size": {"features": [1, 4, 5]},
        "color": {"features": [6, 7]},
    }
    some = Output(name="features", blocks=BLOCKS, selected=(1, 3, 7))
    assert column_features(Transforms(columns=COLUMNS, outputs=(some,))) == {
        "size": {"features": [0]},
        "age": {"features": [1]},
        "color": {"features": [2]},
    }


def test_the_places_of_a_list_are_one_column_and_the_fields_of_an_object_are_not() -> None:
    names = ("shape[0][0]", "shape[0][1]", "shape[1][0]", "home.zip", "home.rooms")
    block = Block(columns=names, steps=(Impute(values=(0.0,) * 5),), features=names)
    columns = tuple(Column(name=name, kind="number") for name in names)
    found = column_features(Transforms(columns=columns, outputs=(Output(name="x", blocks=(block,)),)))
    assert found == {"shape": {"x": [0, 1, 2]}, "home.zip": {"x": [3]}, "home.rooms": {"x": [4]}}


def test_the_mapping_names_every_feature_that_the_prepare_stage_makes(tmp_path: Path) -> None:
    """With bins and indicators each feature's own name begins with its column's."""
    from trainers.evaluate.stage import open_prepared, transforms_of

    source = {"kind": "csv", "path": str(write_table(tmp_path / "t.csv"))}
    spec = run_spec(source, target="y", encode={"number": "piecewise_linear"}, clean={"missing_indicators": True})
    prepare(tmp_path / "p", spec)
    transforms = transforms_of(tmp_path / "p")
    assert transforms is not None
    (output,) = transforms.outputs
    columns = column_features(transforms)
    assert set(columns) == {"age", "size", "color"}
    for name, features in columns.items():
        assert all(output.features[at].startswith(name) for at in features["features"])
    assert sorted(at for features in columns.values() for at in features["features"]) == list(
        range(open_prepared(tmp_path / "p").inputs[0].shape[1])
    )


def columns_of(width: int) -> importance.Features:
    return {f"x{index}": {"features": [index]} for index in range(width)}


def test_what_the_network_does_not_read_is_worth_nothing() -> None:
    features, _ = exclusive_or(600, 0)
    goal = (features[:, 0] > 0).astype(np.int64)
    prepared = table({"features": (features, features)}, (goal, goal), ("no", "yes"))
    threads = torch.get_num_threads()
    found = permutation_importance(Reads(), prepared, goal, columns_of(4))
    assert found is not None
    first, *others = found["columns"]
    assert first["name"] == "x0"
    assert first["accuracy"] == pytest.approx(0.5, abs=0.05), "half of the rows get an answer of another row"
    assert 0 < first["deviation"] < 0.3 * first["mean"]
    assert all(row["mean"] == row["deviation"] == row["accuracy"] == 0.0 for row in others)
    assert permutation_importance(Reads(), prepared, goal, columns_of(4)) == found
    assert torch.get_num_threads() == threads


def test_the_columns_of_a_category_move_together() -> None:
    color = np.eye(2, dtype=np.float32)[np.arange(200) % 2]
    features = np.concatenate([np.zeros((200, 1), np.float32), color], axis=1)
    goal = color.argmax(axis=1)
    prepared = table({"features": (features, features)}, (goal, goal), ("red", "blue"))
    columns = {"number": {"features": [0]}, "color": {"features": [1, 2]}}
    found = permutation_importance(OneHotOnly(), prepared, goal, columns)
    assert found is not None
    assert [row["name"] for row in found["columns"]] == ["color", "number"]
    assert found["columns"][0]["accuracy"] > 0.4


def test_of_a_quantity_the_rise_of_the_rmse_is_told() -> None:
    features, _ = exclusive_or(300, 0, width=2)
    goal = 4 * features[:, 0]
    network = nn.Linear(2, 1, bias=False)
    network.weight.data = torch.tensor([[4.0, 0.0]])
    prepared = table({"features": (features, features)}, (goal, goal))
    found = permutation_importance(network, prepared, goal, columns_of(2))
    assert found is not None
    assert found["metric"] == "rmse"
    assert found["columns"][0]["mean"] == pytest.approx(4 * features[:, 0].std() * np.sqrt(2), rel=0.15)
    assert "accuracy" not in found["columns"][0]


def test_the_work_is_bounded_by_counts(monkeypatch: pytest.MonkeyPatch) -> None:
    features, goal = exclusive_or(600, 0)
    prepared = table({"features": (features, features)}, (goal, goal), ("no", "yes"))
    network = nn.Linear(4, 2)  # ten parameters
    monkeypatch.setattr(importance, "WORK_MAX", 10 * 4 * importance.REPEATS * 150)
    found = permutation_importance(network, prepared, goal, columns_of(4))
    assert found is not None
    assert found["rows"] == 150
    monkeypatch.setattr(importance, "WORK_MAX", 10 * 4 * importance.REPEATS * (importance.ROWS_MIN - 1))
    assert permutation_importance(network, prepared, goal, columns_of(4)) is None
    assert permutation_importance(network, prepared, goal, columns_of(1)) is None
