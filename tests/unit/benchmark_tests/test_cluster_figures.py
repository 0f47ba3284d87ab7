"""The figures in the scheduler's README are those of its result.json, at the size and within the time of its goal."""

from __future__ import annotations

import json

from benchmarks.cluster.run import BEGIN, CASES, END, README, RESULT, table


def test_the_readme_shows_what_was_measured_and_the_goals_are_met() -> None:
    results = json.loads(RESULT.read_text())["results"]
    assert README.read_text().partition(BEGIN)[2].partition(END)[0] == table(results)
    assert "manta" in results
    assert set(results) <= set(CASES)
    for case in {"manta", "fair"} & set(results):
        assert (results[case]["hosts"], results[case]["runs"]) == (1000, 100_000)
        assert results[case]["never_started"] == 0
        assert results[case]["decision_ms_p99"] < 10
