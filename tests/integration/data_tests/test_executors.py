"""One table, three executors: one process, threads and Ray Data write the same bytes and give the same report."""

from __future__ import annotations

import hashlib
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from cluster.atomic import hash_tree
from cluster.errors import DataError
from tests.unit.data_tests.every_finding import PLANTED
from tests.unit.data_tests.every_finding import write as write_findings
from tests.unit.data_tests.making import context, data_spec, run_spec
from tests.unit.data_tests.test_past_memory import SPLIT, write
from trainers.data import check
from trainers.data.check import source_of
from trainers.data.executors import ONE_PROCESS, THREADS, Executor
from trainers.data.prepare import write as write_shards
from trainers.data.quality import label_noise
from trainers.data.quality.check_files import check_files
from trainers.data.ray_data import RAY_DATA
from trainers.data.row_plan import plan_files
from trainers.data.stages import standing_executor


def digest(spec: Any, files: tuple[str, str], folder: Path, executor: Executor) -> str:
    """Of all that prepare writes, its transforms and facts, and of the quality report."""
    folder.mkdir()
    transforms, _, facts = write_shards(folder, plan_files(spec, executor), executor)
    path, test = files
    report = check_files([Path(path)], source_of(path), "y", test=[Path(test)], executor=executor)
    assert {(finding.rule, finding.column) for finding in report.findings} == PLANTED
    answer = [hash_tree(folder), transforms.to_json(), facts, report.to_json()]
    return hashlib.sha256(json.dumps(answer, default=str).encode()).hexdigest()


@pytest.mark.parametrize("split", [SPLIT, {"time": "a", "stratify": False}], ids=["by_hash", "ordered"])
def test_one_table_has_one_digest_on_three_executors(
    split: dict[str, Any], ray_local: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(label_noise, "TREES", 5)
    source, files = write(tmp_path, "csv"), write_findings(tmp_path, "parquet")
    spec = data_spec(source, target="y", split=split, drop_columns=["group"], encode={"number": "standard"})
    digests = {executor.name: digest(spec, files, tmp_path / executor.name, executor)
               for executor in (ONE_PROCESS, THREADS, RAY_DATA)}  # fmt: skip
    assert len(set(digests.values())) == 1, digests
    stage = context(tmp_path / "run", run_spec(source, target="y"))
    assert standing_executor(replace(stage, ensure_ray=lambda: True)) is RAY_DATA
    assert standing_executor(stage) is THREADS  # of a stage outside of a run


def test_a_damaged_file_is_the_same_sentence_from_a_worker(ray_local: str, tmp_path: Path) -> None:
    path = tmp_path / "t.csv"
    path.write_text("a,b\n1,2\n1\n")
    with pytest.raises(DataError, match="Expected 2 columns"):
        check.make_report(str(path), None, test=None, memory_bytes=1, distributed=True)
