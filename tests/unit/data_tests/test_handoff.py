"""What check leaves is taken by prepare and by the next check, for the same bytes and section alone."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from cluster.atomic import hash_tree
from tests.unit.data_tests.making import context, run_spec, write_table
from trainers.data import passes, row_plan
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
        (tables, "table_rules", infer), (passes, "table_rules", infer), (passes, "assign_rows", divide),
        (row_plan, "assign_rows", divide),
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
