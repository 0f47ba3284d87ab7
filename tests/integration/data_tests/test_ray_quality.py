"""The quality report's pass on a real Ray: the report of threads, and errors as the reader raised them."""

from __future__ import annotations

from pathlib import Path

import pytest

from cluster.errors import DataError
from tests.unit.data_tests.every_finding import PLANTED, write
from trainers.data import check


def test_ray_data_gives_the_report_of_threads_to_the_last_digit(ray_local: str, tmp_path: Path) -> None:
    path, test = write(tmp_path, "parquet")
    asked = {"test": test, "memory_bytes": 1}
    here = check.make_report(path, "y", **asked)
    there = check.make_report(path, "y", **asked, distributed=True)
    assert {(f.rule, f.column) for f in there.findings} == PLANTED
    assert there == here


def test_a_damaged_file_is_the_same_sentence_from_a_worker(ray_local: str, tmp_path: Path) -> None:
    path = tmp_path / "t.csv"
    path.write_text("a,b\n1,2\n1\n")
    with pytest.raises(DataError, match="Expected 2 columns"):
        check.make_report(str(path), None, test=None, memory_bytes=1, distributed=True)
