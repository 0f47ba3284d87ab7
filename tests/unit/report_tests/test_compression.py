"""The compression part of the report: the frontier is what nothing beats, and the table says what was measured."""

from __future__ import annotations

from typing import Any

from cluster.report.compression import BASELINE, candidate_rows, frontier, pareto_plot, points_of


def candidate(name: str, accuracy: float | None, speedup: float | None, *, accepted: bool = True) -> dict[str, Any]:
    drop = None if accuracy is None else 0.99 - accuracy
    bounds = {"low": None, "high": None} if drop is None else {"low": drop - 0.004, "high": drop + 0.004}
    return {"name": name, "accepted": accepted, "accuracy": accuracy, "baseline_accuracy": 0.99, "drop": drop,
            "speedup": speedup, **bounds}  # fmt: skip


FACTS = {
    "chosen": "prune75",
    "candidates": [
        candidate("int8", 0.991, 2.5),
        candidate("prune75", 0.989, 7.0),
        candidate("prune75_int8", 0.988, 6.0),
        candidate("prune88", 0.98, 7.2, accepted=False),
        candidate("stopped", None, None, accepted=False),
    ],
    "skipped": [{"name": "prune50", "recipe": "prune", "reason": "a stronger ratio keeps the budget"}],
}


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
    assert candidate_rows({}, 0.01) is None


def test_the_plot_names_every_candidate_that_was_measured() -> None:
    svg = pareto_plot("pareto", FACTS, 0.01)
    assert svg is not None
    assert svg.startswith("<svg")
    for name in points_of(FACTS):
        assert f">{name}<" in svg
    assert ">stopped<" not in svg
    assert pareto_plot("pareto", {"candidates": [candidate("stopped", None, None)]}, 0.01) is None
