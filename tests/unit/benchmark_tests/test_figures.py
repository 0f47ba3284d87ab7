"""The figures in the benchmark's README are those of its result.json."""

from __future__ import annotations

import json

from benchmarks.training_cpu.run import BEGIN, CASES, END, README, RESULT, table


def test_no_figure_in_the_readme_was_written_by_hand() -> None:
    results = json.loads(RESULT.read_text())["results"] if RESULT.exists() else {}
    written = README.read_text().partition(BEGIN)[2].partition(END)[0]
    assert written == (table(results) if results else "")
    assert set(results) <= set(CASES)
