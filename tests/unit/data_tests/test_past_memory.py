"""Preparing past memory: the shards of the way in memory, in bounded memory, or a sentence that says what hinders."""

from __future__ import annotations

import dataclasses
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.csv as pa_csv
import pyarrow.parquet as pq
import pytest

from cluster.atomic import hash_tree
from cluster.bundle.transforms import load_transforms
from cluster.errors import DataError
from cluster.spec.resolve import HostFacts
from tests.unit.data_tests.making import check, context, prepare, run_spec
from trainers.data import row_plan, sample
from trainers.data.fit import balance
from trainers.data.shards import open_prepared
from trainers.data.stages import check_data

ROWS = 9_000
SPLIT = {"by_hash": True, "validation": 0.1, "calibration": 0.05, "gate": 0.1, "test": 0.15}


def table(rows: int = ROWS, seed: int = 0) -> pa.Table:
    rng = np.random.default_rng(seed)
    a = rng.normal(50, 5, rows)
    holes = np.where(rng.random(rows) < 0.1, np.nan, rng.exponential(3, rows))
    return pa.table({
        "a": a,
        "holes": pa.array(holes, from_pandas=True),
        "whole": rng.integers(0, 100, rows),
        "same": np.full(rows, 3),
        "color": pa.array(rng.choice(["red", "green", " blue", "?"], rows)),
        "rare": pa.array([f"w{int(value)}" for value in rng.exponential(20, rows)]),
        "group": pa.array([f"g{value}" for value in rng.integers(0, 700, rows)]),
        "y": np.where(a + rng.normal(0, 3, rows) > 50, "yes", "no"),
    })  # fmt: skip


def write(folder: Path, kind: str, whole: pa.Table | None = None) -> dict[str, Any]:
    whole = table() if whole is None else whole
    path = folder / f"t.{kind}"
    if kind == "parquet":
        pq.write_table(whole, path, row_group_size=1_000)
    elif kind == "csv":
        for part in range(3):
            text = pa.BufferOutputStream()
            pa_csv.write_csv(whole.slice(part * ROWS // 3, ROWS // 3), text)
            (folder / f"t{part}.csv").write_bytes(text.getvalue().to_pybytes())
        return {"kind": "csv", "path": str(folder / "t*.csv")}
    else:
        path.write_text("".join(json.dumps(row) + "\n" for row in whole.to_pylist()))
    return {"kind": kind, "path": str(path)}


def both(folder: Path, source: dict, monkeypatch: pytest.MonkeyPatch, **values: Any) -> tuple[Path, Path]:
    """The prepared folders of the way in memory and the way past it; the second must not read the whole table."""
    spec: dict[str, Any] = {"target": "y", "split": SPLIT, "drop_columns": ["group"], **values}
    check_there = check(folder / "memory", run_spec(source, **spec))
    prepare(folder / "memory", run_spec(source, **spec))
    with monkeypatch.context() as patch:
        patch.setattr(row_plan, "read_source", lambda *_: pytest.fail("the whole table was read"))
        past = run_spec(source, memory_bytes=1, **spec)
        check_here = check(folder / "past", past)
        prepare(folder / "past", past)
    assert check_here.facts == check_there.facts
    assert "past memory" in check_here.details["way"]
    return folder / "memory", folder / "past"


def prepared(folder: Path) -> dict[str, str]:
    """The hashes of what prepare wrote."""
    return {name: digest for name, digest in hash_tree(folder).items() if not name.startswith("plan")}


def assert_same(memory: Path, past: Path, tolerance: float) -> None:
    """The same rows in the same order; features within `tolerance` (0: to the byte)."""
    here, there = open_prepared(memory), open_prepared(past)
    assert (here.classes, here.inputs, list(here.splits)) == (there.classes, there.inputs, list(there.splits))
    for name, split in here.splits.items():
        assert np.array_equal(split.targets, there.splits[name].targets)
        for tensor, values in split.inputs.items():
            found = there.splits[name].inputs[tensor]
            assert values.dtype == found.dtype
            assert np.allclose(values, found, rtol=0, atol=tolerance), name


@pytest.mark.parametrize("kind", ["parquet", "csv", "jsonl"])
def test_a_table_whose_training_rows_fit_the_sample_has_the_same_bytes(
    kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    memory, past = both(tmp_path, write(tmp_path, kind), monkeypatch)
    assert (memory / "transforms.json").read_bytes() == (past / "transforms.json").read_bytes()
    assert_same(memory, past, 0.0)


EXACT: list[dict[str, Any]] = [
    {"encode": {"number": "standard", "category": "one_hot", "max_categories": 20}, "clean": {"impute": "mean"}},
    {"encode": {"number": "min_max", "category": "ordinal"}, "clean": {"impute": "constant", "constant": 2.0}},
    {"encode": {"number": "none", "category": "hash"}, "clean": {"impute": "mean", "missing_indicators": False}},
    {"encode": {"number": "standard", "category": "target"}, "clean": {"impute": "mean"}},
]


@pytest.mark.parametrize("values", EXACT, ids=lambda values: "-".join(map(str, values["encode"].values())))
def test_exact_statistics_give_the_shards_of_memory_from_a_small_sample(
    values: dict, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sample, "SAMPLE_ROWS", 500)  # of 5,400 training rows
    memory, past = both(tmp_path, write(tmp_path, "parquet"), monkeypatch, **values)
    exact, found = (json.loads((folder / "transforms.json").read_text()) for folder in (memory, past))
    _assert_close(exact, found)
    assert_same(memory, past, 1e-6)  # float32 features whose float64 statistics agree to 1e-12


def _assert_close(a: Any, b: Any) -> None:
    """Equal JSON, but for numbers within 1e-12."""
    if isinstance(a, dict):
        assert a.keys() == b.keys()
        for key in a:
            _assert_close(a[key], b[key])
    elif isinstance(a, list):
        assert len(a) == len(b)
        for left, right in zip(a, b, strict=True):
            _assert_close(left, right)
    else:
        assert a == (pytest.approx(b, rel=1e-12, abs=1e-12) if isinstance(a, float) else b)


def test_target_encoding_in_two_passes_gives_the_shards_of_memory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of several files and three classes: a row's fold follows from its file and place, whoever reads it."""
    whole = table()
    kinds = np.array(["u", "v", "w"])[(np.asarray(whole["whole"]) + (np.asarray(whole["a"]) > 50)) % 3]
    source = write(tmp_path, "csv", whole.set_column(7, "y", pa.array(kinds)))
    memory, past = both(tmp_path, source, monkeypatch, encode={"category": "target"})
    assert prepared(memory) == prepared(past)
    train = open_prepared(past).splits["train"].inputs["features"]
    inside = load_transforms(json.loads((past / "transforms.json").read_text()))
    names = inside.outputs[0].features  # type: ignore[union-attr]
    place = names.index("color target 0")
    assert len(np.unique(train[:, place])) == 5 * 4  # in each fold its own encoding of three colors and of none
    assert len(np.unique(open_prepared(past).splits["test"].inputs["features"][:, place])) == 4


@pytest.mark.parametrize("split", [SPLIT, {}, {"group": "group"}], ids=["by_hash", "shuffled", "groups"])
def test_repeated_training_rows_are_left_out_as_in_memory(
    split: dict, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("trainers.data.row_plan.KEY_BYTES", 0)
    once = table(2_000)
    source = write(tmp_path, "parquet", pa.concat_tables([once, once.slice(100, 600), once.slice(0, 300)]))
    values: dict[str, Any] = {"split": split, "drop_columns": [] if "group" in split else ["group"]}
    memory, past = both(tmp_path, source, monkeypatch, clean={"drop_duplicates": True}, **values)
    assert prepared(memory) == prepared(past)
    train = open_prepared(past).splits["train"]
    rows = np.concatenate([train.inputs["features"], train.targets[:, None]], axis=1)
    assert len(np.unique(rows, axis=0)) == len(rows) > 1_000


SELECTED: list[dict[str, Any]] = [
    {"method": "variance", "threshold": 0.05},
    {"method": "anova", "k": 6},
    {"method": "correlation", "threshold": 0.5},
]


@pytest.mark.parametrize("select", SELECTED, ids=lambda select: select["method"])
def test_features_are_selected_by_the_variance_of_all_rows_or_on_a_sample(
    select: dict, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = write(tmp_path, "parquet")
    common: dict[str, Any] = {"clean": {"impute": "mean"}, "encode": {"number": "min_max"}, "select": select}
    memory, past = both(tmp_path / "whole", source, monkeypatch, **common)
    assert prepared(memory) == prepared(past)
    monkeypatch.setattr(sample, "SAMPLE_ROWS", 1_000)
    memory, past = both(tmp_path / "sample", source, monkeypatch, **common)
    there, here = (json.loads((each / "dataset.json").read_text())["facts"]["selection"] for each in (memory, past))
    if select["method"] == "variance":
        assert here["scores"] == pytest.approx(there["scores"], rel=1e-6)
        assert here["kept"] == there["kept"]
        assert_same(memory, past, 1e-6)
    elif select["method"] == "correlation":
        assert here["scores"] == pytest.approx(there["scores"], abs=0.2)
    else:
        assert max(here["scores"], key=here["scores"].get) == max(there["scores"], key=there["scores"].get) == "a"


def test_sampled_medians_are_within_their_rank_and_served_rows_equal_the_shards(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sample, "SAMPLE_ROWS", 2_000)
    encode = {"number": "quantile"}
    memory, past = both(tmp_path, write(tmp_path, "parquet"), monkeypatch, encode=encode)
    here, there = open_prepared(memory).splits["train"], open_prepared(past).splits["train"]
    bound = np.sqrt(np.log(2 / 1e-6) / (2 * 2_000))  # Dvoretzky, Kiefer, Wolfowitz; Massart
    for column in (0, 2):  # numbers without holes; a quantile feature is its rank
        assert np.abs(here.inputs["features"][:, column] - there.inputs["features"][:, column]).max() < bound
    transforms = load_transforms(json.loads((past / "transforms.json").read_text()))
    rows = table().to_pylist()[:40]
    served = transforms.apply_rows(rows)["features"]
    kept = {row.tobytes() for split in open_prepared(past).splits.values() for row in split.inputs["features"]}
    assert all(row.tobytes() in kept for row in served)


ORDERED: dict[str, dict[str, Any]] = {
    "shuffled": {"split": {}},
    "counts": {"split": {"validation": 500, "calibration": 0, "gate": 300, "test": 1_000, "stratify": False}},
    "groups": {"split": {"group": "group"}, "drop_columns": []},
    "times": {"split": {"time": "whole", "stratify": False}},
    "quantity": {"target": "a"},
}


@pytest.mark.parametrize("values", ORDERED.values(), ids=ORDERED)
def test_a_split_that_orders_all_rows_is_that_of_memory(
    values: dict, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = write(tmp_path, "parquet", table(3_000))
    monkeypatch.setattr("trainers.data.row_plan.KEY_BYTES", 0)  # memory_bytes of 1 has room for no key
    memory, past = both(tmp_path, source, monkeypatch, **{"split": {}, **values})
    assert (memory / "transforms.json").read_bytes() == (past / "transforms.json").read_bytes()
    assert_same(memory, past, 0.0)


@pytest.mark.parametrize("method", ["class_weights", "over", "under", "sampler"])
def test_balancing_by_counts_gives_the_training_shards_of_memory(
    method: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(balance, "BLOCK_ROWS", 500)
    source = write(tmp_path, "parquet", table(3_000))
    memory, past = both(tmp_path, source, monkeypatch, balance={"method": method})
    assert hash_tree(memory / "train") == hash_tree(past / "train")
    assert (memory / "dataset.json").read_bytes() == (past / "dataset.json").read_bytes()


def test_a_test_file_beside_a_shuffled_one_divides_as_in_memory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = write(tmp_path, "parquet", table(3_000))
    pq.write_table(table(900, seed=1), tmp_path / "test.parquet")
    monkeypatch.setattr("trainers.data.row_plan.KEY_BYTES", 0)
    beside = {**source, "test_path": str(tmp_path / "test.parquet")}
    assert_same(*both(tmp_path, beside, monkeypatch, split={}), 0.0)


def test_groups_columns_and_a_test_file_divide_as_in_memory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = write(tmp_path, "parquet")
    assert_same(*both(tmp_path / "g", source, monkeypatch, drop_columns=[], split={**SPLIT, "group": "group"}), 0.0)
    pq.write_table(table(900, seed=1), tmp_path / "test.parquet")
    beside = {**source, "test_path": str(tmp_path / "test.parquet")}
    memory, past = both(tmp_path / "t", beside, monkeypatch)
    assert_same(memory, past, 0.0)
    assert len(open_prepared(past).splits["test"]) == 900
    names = np.array(["train", "validation", "test"])[np.arange(ROWS) % 3]
    given = write(tmp_path, "jsonl", table().append_column("part", pa.array(names)))
    assert_same(*both(tmp_path / "c", given, monkeypatch, split={"column": "part"}), 0.0)


def test_what_needs_all_rows_together_is_refused_with_its_remedy(tmp_path: Path) -> None:
    source = write(tmp_path, "parquet")
    cases: list[tuple[dict, str]] = [
        ({"split": {}}, "data.split.by_hash: true"),
        ({"clean": {"drop_duplicates": True}}, "Leave out data.clean.drop_duplicates, or raise data.memory_bytes"),
        ({"balance": {"method": "smotenc"}}, "makes rows between neighbors among all training rows"),
    ]
    for values, words in cases:
        spec = run_spec(source, **{"target": "y", "split": SPLIT, "memory_bytes": 1, **values})
        with pytest.raises(DataError, match=words):
            check(tmp_path / "run", spec)
        assert not list((tmp_path / "run").glob("*"))
    fits = check(tmp_path / "fits", run_spec(source, target="y"))
    assert fits.details["way"].startswith("in memory: preparing it takes about")
    spec = run_spec(source, target="y", balance={"method": "smotenc"})
    tight = dataclasses.replace(context(tmp_path / "tight", spec), host=HostFacts(
        cpu_cores=1, memory_bytes=1 << 20))  # fmt: skip
    assert check_data(tight).details["way"].startswith("in memory, although")  # nobody set a budget: it goes on
    said = [event.text for event in tight.events.events if hasattr(event, "text")]
    assert any("set data.balance.method to class_weights" in text for text in said)


CHILD = """
import json, resource, sys
from pathlib import Path
from tests.unit.data_tests.making import prepare, run_spec
source, folder, memory = json.loads(sys.argv[1]), Path(sys.argv[2]), int(sys.argv[3])
spec = dict(target="y", split={"by_hash": True}, drop_columns=["group"], encode={"number": "standard"})
prepare(folder / "small", run_spec(json.loads(sys.argv[4]), memory_bytes=1, **spec))
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
prepare(folder / "big", run_spec(source, memory_bytes=memory, **spec))
print((resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) * 1024)
"""


@pytest.mark.slow
def test_the_peak_of_memory_does_not_grow_with_the_table(tmp_path: Path) -> None:
    """A child's growth over the peak of a small table, for two tables; the larger one is five times the budget."""
    small = write(tmp_path, "parquet")
    budget, rows, grown = 24 << 20, 200_000, []
    for groups in (3, 10):
        path = tmp_path / f"{groups}.parquet"
        writer = pq.ParquetWriter(path, table(1).schema)
        for seed in range(groups):
            writer.write_table(table(rows, seed), row_group_size=50_000)
        writer.close()
        arguments = [json.dumps({"kind": "parquet", "path": str(path)}), str(tmp_path / str(groups)), str(budget)]
        done = subprocess.run(
            [sys.executable, "-c", CHILD, *arguments, json.dumps(small)], check=True, capture_output=True, text=True
        )
        grown.append(int(done.stdout))
    assert 10 * table(rows).nbytes > 4.5 * budget
    assert grown[1] < 1.5 * grown[0] + (16 << 20), grown
    assert grown[1] < 200 << 20, grown  # in memory the larger table took 1,525 MiB
