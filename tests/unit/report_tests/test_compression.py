"""The compression part of the report: the frontier is what nothing beats, and the table says what was measured."""

from __future__ import annotations

import re
import shutil
from pathlib import Path
from typing import Any

from cluster.report import write_report
from cluster.report.compression import BASELINE, candidate_rows, frontier, pareto_plot, points_of
from cluster.store.stage_facts import CompressFacts
from tests.unit.report_tests.test_report import full_run, record


def candidate(name: str, accuracy: float | None, speedup: float | None, *, accepted: bool = True) -> dict[str, Any]:
    drop = None if accuracy is None else 0.99 - accuracy
    bounds = {"low": None, "high": None} if drop is None else {"low": drop - 0.004, "high": drop + 0.004}
    return {"name": name, "accepted": accepted, "accuracy": accuracy, "baseline_accuracy": 0.99, "drop": drop,
            "speedup": speedup, **bounds}  # fmt: skip


FACTS = CompressFacts(
    chosen="prune75",
    candidates=[
        candidate("int8", 0.991, 2.5),
        candidate("prune75", 0.989, 7.0),
        candidate("prune75_int8", 0.988, 6.0),
        candidate("prune88", 0.98, 7.2, accepted=False),
        candidate("stopped", None, None, accepted=False),
    ],
    skipped=[{"name": "prune50", "recipe": "prune", "reason": "a stronger ratio keeps the budget"}],
)


def test_the_frontier_is_what_no_other_one_beats_in_both() -> None:
    points = points_of(FACTS)
    assert set(points) == {BASELINE, "int8", "prune75", "prune75_int8", "prune88"}
    assert frontier(points) == ["prune88", "prune75", "int8"]  # the float graph is slower and less accurate than int8
    assert frontier({"a": (1.0, 0.9), "b": (1.0, 0.8), "c": (2.0, 0.9)}) == ["a"]


def test_rows_lie_on_one_scale_with_the_budget() -> None:
    table = candidate_rows(FACTS, 0.01)
    assert table is not None
    places = [row["places"]["drop"] for row in table["rows"] if row["places"]["drop"] is not None]
    assert min(places) >= 0.0
    assert max(places) <= 100.0
    assert [row["name"] for row in table["rows"] if row["pareto"]] == ["int8", "prune75", "prune88"]
    assert candidate_rows(CompressFacts(), 0.01) is None


def test_the_plot_names_every_candidate_that_was_measured() -> None:
    svg = pareto_plot("pareto", FACTS, 0.01)
    assert svg is not None
    assert svg.startswith("<svg")
    for name in points_of(FACTS):
        assert f">{name}<" in svg
    assert ">stopped<" not in svg
    assert pareto_plot("pareto", CompressFacts(candidates=[candidate("stopped", None, None)]), 0.01) is None


def test_two_ratios_of_a_row_each_say_what_they_are(tmp_path: Path) -> None:
    """A call of one row can be slower where many rows at once are faster."""
    measured = {
        "batch_size": 1,
        "best_batch_size": 64,
        "cost_ratio": 1.62,
        "best_rows_per_s": 9e3,
        "latency_ms_p50": 2.0,
    }
    run = full_run(tmp_path)
    shutil.rmtree(run.stage("compress"))
    record(run, "compress", {"candidates": [{**candidate("int8", 0.99, 0.81), **measured, "metric": "accuracy"}]})
    html = write_report(run).read_text(encoding="utf-8")
    assert "0.81× as fast as fp32" in html
    assert "1.62× the rows of fp32" in html
    assert "Latency is that of one call of 1 row; throughput is that of the batch size" in html
    assert not re.search(r">\d\.\d\d×<", html), "no bare ratio"


def test_a_quantitys_r2_is_no_percentage() -> None:
    row = {"name": "int8", "metric": "r2", "accuracy": 0.551, "drop": 0.0003, "low": -0.0005, "high": 0.0011, "n": 44}
    table = candidate_rows(CompressFacts(candidates=[row]), 0.01)
    assert table is not None
    assert table["metric"] == "r2"
    assert table["rows"][0]["change"] == "-0.0003, between -0.0011 and +0.0005, 44 rows"
    assert table["budget_said"] == "0.01"
    share = candidate_rows(CompressFacts(candidates=[{**row, "metric": "accuracy", "drop": 0.0, "n": 1}]), 0.01)
    assert share is not None
    assert share["rows"][0]["change"] == "0.00 points, between -0.11 and +0.05, 1 row"
    assert share["budget_said"] == "1 point"
