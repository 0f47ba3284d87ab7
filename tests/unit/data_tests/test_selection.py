"""What selection chose, by which scores, is said in the stage's facts, in the bundle's transforms and in the report."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from sklearn.feature_selection import f_classif

from cluster.bundle.transforms import Transforms, load_transforms
from cluster.errors import DataError
from cluster.report import write_report
from cluster.store.run_folder import RECORD, RunFolder, StageRecord
from tests.unit.data_tests.making import check, prepare, run_spec, write_table
from trainers.data.fit.select import FeatureMoments, feature_scores
from trainers.data.shards import open_prepared

METHODS = {
    "mutual_information": {"k": 3}, "anova": {"k": 3}, "forest": {"k": 3}, "variance": {"threshold": 0.2},
    "correlation": {"threshold": 0.4},
}  # fmt: skip


@pytest.mark.parametrize("method", METHODS)
def test_chosen_names_and_scores_are_in_facts_bundle_and_report(method: str, tmp_path: Path) -> None:
    source = {"kind": "csv", "path": str(write_table(tmp_path / "t.csv"))}
    run = RunFolder(tmp_path / "run")
    folder = run.stage("prepare")
    spec = run_spec(source, target="y", select={"method": method, **METHODS[method]})
    facts = prepare(folder, spec).facts.to_json()
    selection = facts["selection"]
    assert selection["method"] == method
    assert 0 < len(selection["kept"]) < len(selection["scores"])
    transforms = load_transforms(json.loads((folder / "transforms.json").read_text()))  # what export puts in the bundle
    assert isinstance(transforms, Transforms)
    (output,) = transforms.outputs
    assert output.selection is not None
    assert output.selection.model_dump(mode="json") == selection
    assert output.features == output.selection.kept
    record = StageRecord(stage="prepare", inputs_digest="x", facts=facts, started_unix_s=0.0, duration_s=1.0)
    (folder / RECORD).write_text(record.model_dump_json(), encoding="utf-8")
    write_report(run)
    page = run.report.read_text(encoding="utf-8")
    for name, score in selection["scores"].items():
        verdict = "kept" if name in selection["kept"] else "left out"
        assert f'<td>{name}</td><td class="num">{score:.4g}</td><td class="muted">{verdict}</td>' in page
    assert f"{len(selection['kept'])} of {len(selection['scores'])} kept by {method.replace('_', ' ')}" in page


def test_anova_scores_are_scikit_learns_on_the_training_rows(tmp_path: Path) -> None:
    source = {"kind": "csv", "path": str(write_table(tmp_path / "t.csv"))}
    whole = prepare(tmp_path / "whole", run_spec(source, target="y"))
    assert "selection" not in whole.facts.to_json()
    train = open_prepared(tmp_path / "whole").splits["train"]
    expected = f_classif(np.array(train.inputs["features"], dtype=np.float64), train.targets)[0]
    facts = prepare(tmp_path / "some", run_spec(source, target="y", select={"method": "anova", "k": 2})).facts.to_json()
    np.testing.assert_allclose(list(facts["selection"]["scores"].values()), expected, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("number", ["standard", "min_max", "none"])
@pytest.mark.parametrize("past", [False, True])
def test_variance_depends_on_neither_unit_nor_encoding(number: str, past: bool, tmp_path: Path) -> None:
    """Each standardized column has the variance 1: ranked by it, chance chose."""
    rng = np.random.default_rng(0)
    even, rare = rng.uniform(size=4000) * 1e6, rng.exponential(size=4000) ** 2
    lines = [f"{a},{b},{'ab'[i % 2]}" for i, (a, b) in enumerate(zip(rare, even, strict=True))]
    path = tmp_path / "t.csv"
    path.write_text("rare,even,y\n" + "\n".join(lines) + "\n")
    more = {"memory_bytes": 1, "split": {"by_hash": True}} if past else {}
    spec = run_spec({"kind": "csv", "path": str(path)}, target="y", encode={"number": number},
                    select={"method": "variance", "k": 1}, **more)  # fmt: skip
    scores = prepare(tmp_path / "run", spec).facts.to_json()["selection"]["scores"]
    assert scores["even"] == pytest.approx(1 / 12, rel=0.05), "of a uniform number"
    assert scores["rare"] < 0.02


def test_moments_of_batches_are_those_of_all_rows() -> None:
    rows = np.random.default_rng(0).normal(size=(900, 3)) * [1.0, 1e5, 0.0]
    pooled = FeatureMoments.pooled([FeatureMoments.of(part) for part in np.split(rows, [13, 500])])
    np.testing.assert_allclose(pooled.scores, FeatureMoments.of(rows).scores, rtol=1e-12)
    assert pooled.scores[2] == 0.0


def test_mutual_information_of_one_hot_columns_is_that_of_their_table() -> None:
    """Distances to the nearest rows say nothing where a thousand rows have the same value."""
    rng = np.random.default_rng(0)
    code = rng.integers(0, 3, 3000)
    y = np.where(rng.random(3000) < 0.7, code == 0, rng.random(3000) < 0.3).astype(np.int64)
    matrix = np.concatenate([np.eye(3)[code], rng.normal(size=(3000, 1))], axis=1).astype(np.float32)
    scores = feature_scores("mutual_information", matrix, y, classification=True)
    for index in range(3):
        table = np.array([[np.mean((matrix[:, index] == a) & (y == b)) for b in (0, 1)] for a in (0, 1)])
        chance = table.sum(axis=1, keepdims=True) * table.sum(axis=0, keepdims=True)
        assert scores[index] == pytest.approx((table * np.log(table / chance)).sum(), abs=1e-9)
    assert scores[3] < 0.02
    ranks = feature_scores("mutual_information", (matrix @ [0, 1, 2, 0])[:, None], y.astype(float), False)
    assert ranks[0] > 0.1, "of a quantity too"


@pytest.mark.parametrize("past", [False, True])
def test_more_features_than_there_are_is_an_error_of_check(past: bool, tmp_path: Path) -> None:
    source = {"kind": "csv", "path": str(write_table(tmp_path / "t.csv"))}
    more = {"memory_bytes": 1, "split": {"by_hash": True}} if past else {}
    spec = {"target": "y", "encode": {"number": "standard"}, **more}
    with pytest.raises(DataError, match=r"data\.select\.k is 7, and the encoded rows have 6 features"):
        check(tmp_path / "much", run_spec(source, select={"method": "anova", "k": 7}, **spec))
    check(tmp_path / "all", run_spec(source, select={"method": "anova", "k": 6}, **spec))
