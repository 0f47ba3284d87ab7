"""A leak planted into each step: rows outside of training change wildly, and nothing that is fitted may notice.

The step's own result is compared bit for bit: transforms, names and scores of selection, the balanced training shard.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from cluster.spec.data import SPLITS
from tests.unit.data_tests.making import check, prepare, run_spec, write_table
from trainers.data.executors import ONE_PROCESS
from trainers.data.prepare import write
from trainers.data.read.raw import ITEMS
from trainers.data.row_plan import plan_rows
from trainers.data.shards import Split, open_prepared

ROWS = 300
Found = tuple[dict[str, Any], Split, dict[str, Any]]


def parts(count: int) -> list[str]:
    """Half of the rows train, the others are spread over the other splits."""
    return ["train" if index % 2 else SPLITS[1 + index // 2 % 4] for index in range(count)]


def fitted(folder: Path, head: str, lines: list[str], **values: Any) -> Found:
    """Transforms, training shard and facts of a table whose rows say their split."""
    path = folder.with_suffix(".csv")
    rows = [f"{line},{part}" for line, part in zip(lines, parts(len(lines)), strict=True)]
    path.write_text("\n".join([f"{head},part", *rows]) + "\n")
    spec = run_spec({"kind": "csv", "path": str(path)}, target="y", split={"column": "part"}, **values)
    facts = prepare(folder, spec).facts.to_json()
    return json.loads((folder / "transforms.json").read_text()), open_prepared(folder).splits["train"], facts


def same(one: Found, other: Found) -> None:
    assert one[0] == other[0]
    for key in ("selection", "balance", "num_features"):
        assert one[2].get(key) == other[2].get(key)
    for name, array in one[1].inputs.items():
        assert np.array_equal(array, other[1].inputs[name])
    assert np.array_equal(one[1].targets, other[1].targets)
    assert (one[1].weights is None) == (other[1].weights is None)
    if one[1].weights is not None and other[1].weights is not None:
        assert np.array_equal(one[1].weights, other[1].weights)


def planted(lines: list[str], leak: str) -> list[str]:
    """Rows outside of training replaced; they keep their targets, which are the last field."""
    return [
        line if part == "train" else f"{leak},{line.rsplit(',', 1)[1]}"
        for line, part in zip(lines, parts(len(lines)), strict=True)
    ]


TARGET = {"encode": {"category": "target"}}
STEPS: dict[str, dict[str, Any]] = {
    **{f"impute {how}": {"clean": {"impute": how}} for how in ("median", "mean", "mode", "constant", "neighbors")},
    "clip outliers": {"clean": {"clip_iqr": 1.5}},
    **{f"scale {how}": {"encode": {"number": how}}
       for how in ("standard", "robust", "min_max", "quantile", "piecewise_linear")},
    **{f"encode {how}": {"encode": {"category": how}} for how in ("one_hot", "ordinal", "target", "hash")},
    "rare categories": {"encode": {"max_categories": 2}},
    **{f"select {how}": {"select": {"method": how, "k": 2}}
       for how in ("mutual_information", "anova", "forest", "variance")},
    "select correlation": {"select": {"method": "correlation", "threshold": 0.2}},
    **{f"balance {how}": {"balance": {"method": how}} for how in ("class_weights", "over", "under", "sampler")},
    "balance smotenc": {"balance": {"method": "smotenc"}},
    **{f"balance {how}": {"balance": {"method": how}, **TARGET}
       for how in ("smote", "smote_under", "borderline_smote", "adasyn")},
    "drop duplicates": {"clean": {"drop_duplicates": True}},
}  # fmt: skip


@pytest.mark.parametrize("step", STEPS)
def test_no_step_of_a_table_sees_a_row_outside_of_training(step: str, tmp_path: Path) -> None:
    head, *lines = write_table(tmp_path / "t.csv", ROWS, positive=0.3).read_text().splitlines()
    honest = fitted(tmp_path / "honest", head, lines, **STEPS[step])
    same(honest, fitted(tmp_path / "leak", head, planted(lines, "9e5,-8e5,blue"), **STEPS[step]))
    same(honest, fitted(tmp_path / "words", head, planted(lines, "1,?,purple"), **STEPS[step]))


@pytest.mark.parametrize("text", ["word_counts", "token_ids"])
def test_no_vocabulary_sees_a_text_outside_of_training(text: str, tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    words = ["free", "prize", "win", "hello", "home", "love", "see", "you"]
    lines = [f"{' '.join(rng.choice(words, 5))} {index},{'ham' if index % 3 else 'spam'}" for index in range(ROWS)]
    values = {"columns": {"message": "text"}, "encode": {"text": text, "vocabulary": 60}}
    honest = fitted(tmp_path / "honest", "message,y", lines, **values)
    same(honest, fitted(tmp_path / "leak", "message,y", planted(lines, "zyzzyva qwerty free free"), **values))


@pytest.mark.parametrize("shape", [(3, 4, 4), (7,)], ids=["images", "arrays"])
def test_no_mean_sees_an_array_outside_of_training(shape: tuple[int, ...], tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    arrays = rng.random((100, *shape), dtype=np.float32)
    np.savez(tmp_path / "a.npz", x=arrays, y=np.arange(100) % 2)
    spec = run_spec({"kind": "numpy", "inputs": f"{tmp_path}/a.npz:x", "targets": f"{tmp_path}/a.npz:y"}).data
    plan = plan_rows(spec)
    honest, *_ = write(tmp_path, plan, ONE_PROCESS)
    (before,) = open_prepared(tmp_path).splits["train"].inputs.values()
    for name in SPLITS[1:]:
        plan.batch.values[ITEMS][plan.rows[name]] = 1e6
    leaked, *_ = write(tmp_path / "leaked", plan, ONE_PROCESS)
    assert leaked == honest
    (after,) = open_prepared(tmp_path / "leaked").splits["train"].inputs.values()
    assert np.array_equal(after, before)


def test_the_test_would_see_a_leak(tmp_path: Path) -> None:
    """A training row that changes changes what is fitted: the comparison above is not blind."""
    head, *lines = write_table(tmp_path / "t.csv", ROWS).read_text().splitlines()
    honest = fitted(tmp_path / "honest", head, lines)
    lines[1] = "9e5,-8e5,blue,yes"
    assert parts(ROWS)[1] == "train"
    with pytest.raises(AssertionError):
        same(honest, fitted(tmp_path / "leak", head, lines))
    assert check(tmp_path / "again", run_spec({"kind": "csv", "path": str(tmp_path / "t.csv")}, target="y"))
