"""What selection chose, by which scores, is said in the stage's facts, in the bundle's transforms and in the report."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from sklearn.feature_selection import f_classif

from cluster.bundle.transforms import Transforms, load_transforms
from cluster.report import write_report
from cluster.store.run_folder import RECORD, RunFolder, StageRecord
from tests.unit.data_tests.making import prepare, run_spec, write_table
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
