"""What check leaves is taken by prepare and by the next check, for the same bytes and section alone."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from cluster.atomic import hash_tree
from tests.unit.data_tests.making import context, run_spec, write_table
from trainers.data import handoff, row_plan, stages
from trainers.data.read import tables
from trainers.data.row_plan import assign_rows
from trainers.data.stages import check_data, prepare_data


def run(home: Path, spec: Any) -> dict[str, str]:
    """Check and prepare of one run; the hashes of what prepare wrote."""
    home.mkdir(exist_ok=True)
    resolved = check_data(context(home, spec)).resolved
    folder = home / "prepared"
    folder.mkdir(exist_ok=True)
    prepare_data(replace(context(home, spec, "prepare", resolved), folder=folder))
    return hash_tree(folder)


@pytest.fixture
def counted(monkeypatch: pytest.MonkeyPatch) -> dict[str, int]:
    """How often columns were inferred, and rows divided."""
    calls = {"inferred": 0, "divided": 0}

    def infer(*arguments: Any) -> Any:
        calls["inferred"] += 1
        return rules(*arguments)

    def divide(*arguments: Any, **values: Any) -> Any:
        calls["divided"] += 1
        return assign_rows(*arguments, **values)

    rules = tables.table_rules
    for module, name, function in (
        (tables, "table_rules", infer), (row_plan, "table_rules", infer), (row_plan, "assign_rows", divide),
    ):  # fmt: skip
        monkeypatch.setattr(module, name, function)
    return calls


@pytest.mark.parametrize("memory_bytes", [None, 30_000], ids=["memory", "past"])
def test_prepare_and_the_next_check_neither_infer_nor_divide_again(
    memory_bytes: int | None, counted: dict[str, int], tmp_path: Path
) -> None:
    path = write_table(tmp_path / "t.csv")
    more = {} if memory_bytes is None else {"memory_bytes": memory_bytes}
    spec = run_spec({"kind": "csv", "path": str(path)}, target="y", **more)
    first = run(tmp_path / "run", spec)
    assert counted == {"inferred": 1, "divided": 1}
    said = context(tmp_path / "run", spec)
    again = check_data(said)
    assert counted == {"inferred": 1, "divided": 1}
    fresh = context(tmp_path / "fresh" / "run", spec)
    assert check_data(fresh) == again
    assert [event.text for event in said.events.events] == [event.text for event in fresh.events.events]
    assert counted == {"inferred": 2, "divided": 2}
    (tmp_path / "run" / "plan" / "splits.npy").write_bytes(b"damaged")
    assert run(tmp_path / "run", spec) == first
    assert counted == {"inferred": 3, "divided": 3}


def test_other_bytes_and_another_section_are_read_again(counted: dict[str, int], tmp_path: Path) -> None:
    path = write_table(tmp_path / "t.csv")
    source = {"kind": "csv", "path": str(path)}
    before = run(tmp_path / "run", run_spec(source, target="y"))
    other = run(tmp_path / "run", run_spec(source, target="y", split={"seed": 8}))
    assert counted["divided"] == 2
    assert other["train/targets.npy"] != before["train/targets.npy"]
    resolved = check_data(context(tmp_path / "run", run_spec(source, target="y"))).resolved
    path.write_text(path.read_text().replace("red", "rad"))
    stage = context(tmp_path / "run", run_spec(source, target="y"), "prepare", resolved)
    prepare_data(stage)
    assert '"rad"' in (tmp_path / "run" / "transforms.json").read_text()
    assert counted["divided"] == 4


@pytest.mark.parametrize("memory_bytes", [None, 30_000], ids=["memory", "past"])
def test_a_file_that_moves_from_training_to_the_test_is_no_longer_trained_on(
    memory_bytes: int | None, tmp_path: Path
) -> None:
    """All bytes, and their order, are what they were."""
    header, *lines = write_table(tmp_path / "t.csv").read_text().splitlines(keepends=True)
    for folder, name, part in (("train", "1", lines[:90]), ("train", "2", lines[90:150]), ("test", "3", lines[150:])):
        (tmp_path / folder).mkdir(exist_ok=True)
        (tmp_path / folder / f"{name}.csv").write_text("".join([header, *part]))
    more = {} if memory_bytes is None else {"memory_bytes": memory_bytes}
    source = {"kind": "csv", "path": f"{tmp_path}/train/*.csv", "test_path": f"{tmp_path}/test/*.csv"}
    spec = run_spec(source, target="y", **more)
    before = check_data(context(tmp_path / "run", spec))
    (tmp_path / "train" / "2.csv").rename(tmp_path / "test" / "2.csv")
    after = check_data(context(tmp_path / "run", spec))
    assert after.facts.splits["test"] == before.facts.splits["test"] + 60
    assert after == check_data(context(tmp_path / "fresh" / "run", spec))


@pytest.mark.parametrize("version", ["0.0.9", None], ids=["another version", "a changed plan"])
def test_a_plan_of_another_version_and_one_that_was_changed_are_not_taken(
    version: str | None, counted: dict[str, int], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    spec = run_spec({"kind": "csv", "path": str(write_table(tmp_path / "t.csv"))}, target="y")
    before = check_data(context(tmp_path / "run", spec))
    if version:
        monkeypatch.setattr(handoff, "__version__", version)
    else:
        plan = tmp_path / "run" / "plan" / "plan.json"
        plan.write_text(plan.read_text().replace('"num_rows_train":', '"num_rows_train":1'))
    assert check_data(context(tmp_path / "run", spec)) == before
    assert counted["inferred"] == 2


def test_past_memory_a_file_that_changes_after_it_was_hashed_is_divided_anew(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = write_table(tmp_path / "t.csv")
    spec = run_spec({"kind": "csv", "path": str(path)}, target="y", memory_bytes=30_000)
    resolved = check_data(context(tmp_path / "run", spec)).resolved

    def load(*arguments: Any) -> Any:
        found = load_handoff(*arguments)
        path.write_text(path.read_text().replace("red", "rad"))
        return found

    load_handoff = stages.load_handoff
    monkeypatch.setattr(stages, "load_handoff", load)
    stage = context(tmp_path / "run", spec, "prepare", resolved)
    prepare_data(stage)
    assert '"rad"' in (stage.folder / "transforms.json").read_text()


@pytest.mark.parametrize("kind", ["timestamp[us]", "date32[day]"])
def test_a_dropped_column_may_hold_dates_beyond_pythons_years(kind: str, tmp_path: Path) -> None:
    far = {
        "timestamp[us]": pa.array([2**61] * 60, pa.timestamp("us")),
        "date32[day]": pa.array([2**30] * 60, pa.int32()),
    }
    table = pa.table({"x": np.arange(60.0), "far": far[kind].cast(kind), "y": ["a", "b"] * 30})
    pq.write_table(table, tmp_path / "t.parquet")
    source = {"kind": "parquet", "path": str(tmp_path / "t.parquet")}
    checked = check_data(context(tmp_path / "run", run_spec(source, target="y", drop_columns=["far"])))
    assert checked.facts.splits["train"] > 30
