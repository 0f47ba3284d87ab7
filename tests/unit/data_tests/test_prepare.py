"""Prepared shards: fitted on the training rows alone, and the same numbers that serving computes."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from cluster.bundle.transforms import load_transforms
from cluster.errors import DataError
from cluster.spec.data import SPLITS
from cluster.spec.resolve import ResolvedRun
from tests.unit.data_tests.making import check, context, prepare, run_spec, write_table
from trainers.data.shards import PreparedData, open_prepared
from trainers.data.stages import prepare_data


def prepared(folder: Path, spec: Any) -> PreparedData:
    prepare(folder, spec)
    return open_prepared(folder)


def test_digits_become_standardized_images_and_every_auto_is_decided(tmp_path: Path) -> None:
    spec = run_spec({"kind": "sklearn", "dataset": "digits"})
    result = check(tmp_path / "a", spec)
    assert isinstance(result.resolved, ResolvedRun)
    assert result.resolved.spec.model.family == "cnn"
    assert result.resolved.data.num_rows_train == result.facts.to_json()["splits"]["train"]
    data = prepared(tmp_path / "b", spec)
    assert data.inputs[0].shape == (-1, 1, 8, 8)
    assert data.num_outputs == 10
    assert set(data.splits) == set(SPLITS)
    train = data.splits["train"].inputs["image"]
    assert abs(float(train.mean())) < 1e-5
    assert abs(float(train.std()) - 1) < 1e-5
    assert isinstance(train, np.memmap)


@pytest.mark.parametrize("dataset", ["iris", "wine", "breast_cancer"])
def test_scikit_learn_tables_keep_their_class_names(dataset: str, tmp_path: Path) -> None:
    split = {"validation": 0.1, "calibration": 0, "gate": 0.1, "test": 0.2}
    data = prepared(tmp_path, run_spec({"kind": "sklearn", "dataset": dataset}, split=split))
    assert data.classes[0] in ("setosa", "class_0", "benign")
    assert data.inputs[0].name == "features"


def test_a_served_row_equals_its_shard_bit_for_bit(tmp_path: Path) -> None:
    path = write_table(tmp_path / "t.csv")
    split = {"column": "part"}
    lines = path.read_text().splitlines()
    names = ["train", "validation", "test"]
    path.write_text("\n".join([lines[0] + ",part", *(f"{line},{names[i % 3]}" for i, line in enumerate(lines[1:]))]))
    source = {"kind": "csv", "path": str(path)}
    data = prepared(tmp_path / "run", run_spec(source, target="y", split=split, encode={"number": "piecewise_linear"}))
    transforms = load_transforms(json.loads((tmp_path / "run" / "transforms.json").read_text()))
    raw = [dict(zip(lines[0].split(","), line.split(","), strict=True)) for line in lines[1:]]
    for place, name in enumerate(names):
        served = transforms.apply_rows(raw[place::3])["features"]
        assert np.array_equal(served, data.splits[name].inputs["features"])
        labels = [row["y"] for row in raw[place::3]]
        assert [data.classes[code] for code in data.splits[name].targets] == labels


ENCODINGS: list[dict[str, Any]] = [
    {"encode": {"number": number, "category": category}, "clean": {"impute": impute, "clip_iqr": 1.5}}
    for number, category, impute in (
        ("standard", "one_hot", "median"),
        ("robust", "ordinal", "mean"),
        ("min_max", "target", "mode"),
        ("quantile", "hash", "neighbors"),
        ("piecewise_linear", "target", "median"),
    )
]


@pytest.mark.parametrize("values", ENCODINGS, ids=lambda values: "-".join(values["encode"].values()))
def test_rows_outside_of_training_cannot_change_what_is_fitted(values: dict, tmp_path: Path) -> None:
    """The planted leak: validation, gate and test rows are changed wildly; transforms and training shard must not."""
    found = []
    for leak in (False, True):
        path = write_table(tmp_path / f"{leak}.csv", 300)
        head, *lines = path.read_text().splitlines()
        parts = ["train" if i % 2 else SPLITS[1 + i // 2 % 4] for i in range(len(lines))]
        if leak:
            lines = [line if part == "train" else f"9e5,-8e5,leak{i % 3},{line[-3:].strip(',')}"
                     for i, (line, part) in enumerate(zip(lines, parts, strict=True))]  # fmt: skip
        path.write_text("\n".join([head + ",part", *map(",".join, zip(lines, parts, strict=True))]))
        folder = tmp_path / f"run{leak}"
        select = {"method": "anova", "k": 4}
        balance = {"method": "smotenc", "neighbors": 3}
        spec = run_spec(
            {"kind": "csv", "path": str(path)}, target="y", split={"column": "part"}, select=select, balance=balance,
            **values,
        )  # fmt: skip
        train = prepared(folder, spec).splits["train"]
        found.append((json.loads((folder / "transforms.json").read_text()), np.array(train.inputs["features"])))
    assert found[0][0] == found[1][0]
    assert np.array_equal(found[0][1], found[1][1])


def test_target_encoding_of_a_training_row_does_not_see_its_own_target(tmp_path: Path) -> None:
    """An identifier as a category: encoded with its own target it would predict it perfectly."""
    rng = np.random.default_rng(0)
    y = rng.integers(0, 2, 400)
    rows = "".join(f"{rng.normal():.4f},w{i // 2},{y[i]}\n" for i in range(400))
    (tmp_path / "t.csv").write_text("a,who,y\n" + rows)
    split = {"validation": 20, "calibration": 0, "gate": 0, "test": 20, "stratify": False}
    spec = run_spec({"kind": "csv", "path": str(tmp_path / "t.csv")}, target="y", split=split,
                    encode={"category": "target", "number": "standard"})  # fmt: skip
    train = prepared(tmp_path / "run", spec).splits["train"]
    assert abs(np.corrcoef(train.inputs["features"][:, 1], train.targets)[0, 1]) < 0.3


@pytest.mark.parametrize(
    ("method", "category"),
    [("over", "one_hot"), ("under", "one_hot"), ("sampler", "one_hot"), ("smotenc", "one_hot"), ("smote", "target"),
     ("smote_under", "target"), ("borderline_smote", "target"), ("adasyn", "target"), ("class_weights", "one_hot")],
)  # fmt: skip
def test_balance_touches_the_training_split_alone(method: str, category: str, tmp_path: Path) -> None:
    path = write_table(tmp_path / "t.csv", 400, positive=0.2)
    common: dict[str, Any] = {"target": "y", "encode": {"category": category}}
    source = {"kind": "csv", "path": str(path)}
    plain = prepared(tmp_path / "plain", run_spec(source, **common))
    spec = run_spec(source, **common, balance={"method": method})
    changed = prepared(tmp_path / "changed", spec)
    for name in SPLITS[1:]:
        assert np.array_equal(plain.splits[name].targets, changed.splits[name].targets)
        assert np.array_equal(plain.splits[name].inputs["features"], changed.splits[name].inputs["features"])
    before, train = plain.splits["train"], changed.splits["train"]
    assert len(train) == check(tmp_path / "again", spec).resolved.data.num_rows_train
    if method == "class_weights":
        assert train.weights is not None
        sums = np.bincount(train.targets, weights=train.weights)
        assert sums[0] == pytest.approx(sums[1], rel=1e-4)
        assert train.weights.mean() == pytest.approx(1.0, rel=1e-4)
        return
    counts = np.bincount(train.targets)
    assert abs(counts[0] - counts[1]) <= 0.15 * counts.max()
    if method in ("over", "smotenc", "smote", "borderline_smote", "adasyn"):
        assert np.array_equal(train.inputs["features"][: len(before)], before.inputs["features"])
    if method == "smotenc":
        one_hot = train.inputs["features"][len(before) :, -3:]
        assert set(np.unique(one_hot)) == {0.0, 1.0}
        assert np.all(one_hot.sum(axis=1) == 1)


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ({"balance": {"method": "smote"}}, "Set data.balance.method: smotenc"),
        ({"balance": {"method": "smotenc", "neighbors": 400}}, "data.balance.neighbors is 400"),
        *(
            ({"balance": {"method": how, "neighbors": 400}, "encode": {"category": "target"}}, "neighbors is 400")
            for how in ("smote", "borderline_smote", "adasyn", "smote_under")
        ),
        ({"balance": {"method": "smotenc"}, "drop_columns": ["color"]}, "no column is a category"),
        ({"select": {"method": "variance", "threshold": 1e9}}, "none of"),
    ],
)
def test_a_step_that_cannot_be_done_says_what_to_do(values: dict, words: str, tmp_path: Path) -> None:
    path = write_table(tmp_path / "t.csv", positive=0.2)
    with pytest.raises(DataError) as caught:
        prepare(tmp_path / "run", run_spec({"kind": "csv", "path": str(path)}, target="y", **values))
    assert words in caught.value.message
    assert not (tmp_path / "run" / "dataset.json").exists()


@pytest.mark.parametrize("method", ["mutual_information", "anova", "forest", "variance"])
def test_selection_keeps_the_k_best_and_serving_makes_the_same_columns(method: str, tmp_path: Path) -> None:
    path = write_table(tmp_path / "t.csv")
    spec = run_spec({"kind": "csv", "path": str(path)}, target="y", select={"method": method, "k": 2})
    result = prepare(tmp_path, spec)
    assert len(result.facts.to_json()["selection"]["kept"]) == 2
    if method != "variance":
        assert "age" in result.facts.to_json()["selection"]["kept"]
    transforms = load_transforms(json.loads((tmp_path / "transforms.json").read_text()))
    assert transforms.apply_rows([{"age": 1, "size": None, "color": "red"}])["features"].shape == (1, 2)
    assert open_prepared(tmp_path).inputs[0].shape == (-1, 2)


def test_correlated_columns_are_thinned(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    a = rng.normal(size=200)
    rows = "".join(f"{x},{2 * x + 1},{rng.normal()},{int(x > 0)}\n" for x in a)
    (tmp_path / "t.csv").write_text("a,twin,b,y\n" + rows)
    select = {"method": "correlation", "threshold": 0.95}
    result = prepare(tmp_path / "run", run_spec({"kind": "csv", "path": str(tmp_path / "t.csv")}, target="y",
                                                select=select))  # fmt: skip
    assert result.facts.to_json()["selection"]["kept"] == ["a", "b"]


@pytest.mark.parametrize(("text", "name", "datatype"), [("word_counts", "features", "FP32"),
                                                         ("token_ids", "message_ids", "INT64")])  # fmt: skip
def test_text_becomes_weights_or_ids(text: str, name: str, datatype: str, tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    words = ["free", "prize", "win", "hello", "home", "love", "see", "you"]
    lines = []
    for i in range(200):
        chosen = rng.choice(words[:4] if i % 2 else words[3:], 6)
        lines.append(f'{"spam" if i % 2 else "ham"}\t{" ".join(chosen)} {i} "quoted')
    (tmp_path / "t.tsv").write_text("kind\tmessage\n" + "\n".join(lines) + "\n")
    source = {"kind": "csv", "path": str(tmp_path / "t.tsv"), "delimiter": "\t", "quote": None}
    encode = {"text": text, "vocabulary": 60, "text_length": 12}
    result = prepare(tmp_path / "run", run_spec(source, target="kind", encode=encode))
    tensor = result.facts.to_json()["inputs"][0]
    assert (tensor["name"], tensor["datatype"]) == (name, datatype)
    assert result.facts.to_json()["columns"] == {"message": "text"}
    transforms = load_transforms(json.loads((tmp_path / "run" / "transforms.json").read_text()))
    assert transforms.apply_rows([{"message": "free prize"}])[name].any()


def test_a_python_function_gives_a_table_or_arrays(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "manta_test_source.py").write_text(
        "import numpy as np, pandas as pd\n"
        "def table():\n    return pd.DataFrame({'a': np.arange(60.0), 'y': np.arange(60) % 2})\n"
        "def arrays():\n    return np.ones((60, 4)) * np.arange(60)[:, None], np.arange(60) % 2\n"
    )
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    for name, width in (("table", 1), ("arrays", 4)):
        source = {"kind": "python", "function": f"manta_test_source:{name}"}
        data = prepared(tmp_path / name, run_spec(source, target="y"))
        assert data.inputs[0].shape == (-1, width)
    with pytest.raises(DataError, match="no attribute 'tabel'"):
        check(tmp_path / "run", run_spec({"kind": "python", "function": "manta_test_source:tabel"}))


def test_patterns_join_files_and_a_test_file_is_the_test_split(tmp_path: Path) -> None:
    whole = write_table(tmp_path / "all.csv", 300).read_text().splitlines()
    for part in range(2):
        (tmp_path / f"part{part}.csv").write_text("\n".join([whole[0], *whole[1 + part * 100 : 101 + part * 100]]))
    (tmp_path / "held.csv").write_text("\n".join([whole[0], *whole[201:]]))
    source = {"kind": "csv", "path": f"{tmp_path}/part*.csv", "test_path": f"{tmp_path}/held.csv"}
    data = prepared(tmp_path / "run", run_spec(source, target="y"))
    assert len(data.splits["test"]) == 100
    assert sum(len(split) for split in data.splits.values()) == 300


def test_a_removed_or_cut_shard_is_a_sentence(tmp_path: Path) -> None:
    spec = run_spec({"kind": "sklearn", "dataset": "digits"})
    prepare(tmp_path, spec)
    shard = tmp_path / "gate" / "targets.npy"
    shard.write_bytes(shard.read_bytes()[:-8])
    with pytest.raises(DataError, match="the shard is damaged"):
        open_prepared(tmp_path)
    shard.unlink()
    with pytest.raises(DataError, match="the shard is gone"):
        open_prepared(tmp_path)
    (tmp_path / "dataset.json").unlink()
    with pytest.raises(DataError, match=r"has no dataset\.json"):
        open_prepared(tmp_path)


def test_the_digest_follows_the_content_alone(tmp_path: Path) -> None:
    path = write_table(tmp_path / "a.csv")
    other = tmp_path / "b.csv"
    other.write_bytes(path.read_bytes())

    def digest(name: Path) -> str:
        spec = run_spec({"kind": "csv", "path": str(name)}, target="y")
        return check(tmp_path / "run", spec).resolved.data.source_digest

    first = digest(path)
    assert digest(other) == first
    other.write_text(path.read_text().replace("red", "rad", 1))
    assert digest(other) != first


def test_prepare_reads_the_resolved_spec(tmp_path: Path) -> None:
    path = write_table(tmp_path / "t.csv", 4000)
    spec = run_spec({"kind": "csv", "path": str(path)}, target="y")
    resolved = check(tmp_path / "run", spec).resolved
    assert resolved.spec.data.encode.number == "piecewise_linear"
    prepare_data(context(tmp_path / "run", spec, "prepare", resolved))
    text = (tmp_path / "run" / "transforms.json").read_text()
    assert '"op": "piecewise_linear"' in text
