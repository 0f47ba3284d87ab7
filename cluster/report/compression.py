"""Compression in the report: the table of candidates and the plot of accuracy against latency with its frontier.

Invariant: a candidate is on the frontier if no other measured one, the float graph included, is at least as good in
both accuracy and latency and better in one.

Covered: facts of the compress stage. Not covered: how they came about (trainers/compress).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from cluster.report.evaluation import metric_name
from cluster.report.figures import LINE, MUTED, SERIES, TEXT, axes_of, label_of, svg_of
from cluster.store.stage_facts import CompressFacts
from cluster.telemetry.view import SHARES, counted

BASELINE = "fp32"
LOG_FROM = 4  # latencies that spread by more than this are read more easily on a logarithmic axis
LABELS_MAX = 14  # more names than that overlap


def candidate_rows(facts: CompressFacts, budget: float | None) -> dict[str, Any] | None:
    """Candidates with the place of their interval on a common scale, in percent of its width."""
    rows = facts.candidates
    if not rows:
        return None
    bounds = [
        float(row[key]) for row in rows for key in ("low", "high", "drop") if isinstance(row.get(key), int | float)
    ]
    if budget is not None:
        bounds += [budget, 0.0]
    low, high = min(bounds, default=0.0), max(bounds, default=1.0)
    span = (high - low) or 1.0

    def place(value: Any) -> float | None:
        return None if not isinstance(value, int | float) else 100 * (float(value) - low) / span

    best = frontier(points_of(facts))
    metric = str(rows[0].get("metric") or "accuracy")
    shown = [
        {
            **row,
            "change": change_said(row, metric),
            "places": {key: place(row.get(key)) for key in ("low", "high", "drop")},
            "pareto": _name(row) in best,
        }
        for row in rows
    ]
    return {
        "rows": shown,
        "chosen": facts.chosen,
        "baseline": facts.baseline,
        "rival": (facts.rival or {}).get("sentence"),
        "skipped": facts.skipped,
        "budget": budget,
        "budget_at": place(budget),
        "measured": _measured(rows),
        "metric": metric,
        "budget_said": None if budget is None else _budget_said(budget, metric),
        "zero_at": place(0),
    }


def change_said(row: Mapping[str, Any], metric: str) -> str:
    """`-0.30 points, between -0.71 and +0.11, 2,000 rows`: minus the drop, as a change reads."""
    if row.get("drop") is None:
        return ""
    said = said_change(-row["drop"], metric)
    if row.get("low") is not None and row.get("high") is not None:
        low, high = (said_change(-row[key], metric, unit=False) for key in ("high", "low"))
        said += f", between {low} and {high}"
    return f"{said}, {counted(row['n'], 'row')}" if row.get("n") else said


def said_change(value: float, metric: str, *, unit: bool = True) -> str:
    """Of a share in percentage points, of anything else (R²) in its own unit."""
    if metric not in SHARES:
        return f"{value:+.4f}" if abs(value) >= 5e-5 else "0"
    points = f"{100 * value:+.2f}" if abs(100 * value) >= 0.005 else "0.00"
    return f"{points} points" if unit else points


def _budget_said(budget: float, metric: str) -> str:
    return f"{budget:g}" if metric not in SHARES else f"{100 * budget:g} {'point' if budget == 0.01 else 'points'}"


def _measured(rows: Sequence[Mapping[str, Any]]) -> str:
    """What the two times of a row are: one call may be slower where many at once are faster."""
    row = next((row for row in rows if row.get("batch_size") and row.get("best_batch_size")), None)
    if row is None:
        return ""
    return (
        f"Latency is that of one call of {counted(int(row['batch_size']), 'row')}; throughput is that of the batch "
        "size at which each graph does most, so one can rise where the other falls. Ratios come from timing both "
        "graphs in alternation."
    )


def points_of(facts: CompressFacts) -> dict[str, tuple[float, float]]:
    """name -> (latency relative to the float graph, accuracy) of everything that was measured.

    Each candidate was timed against the float graph in alternation, so ratios compare where milliseconds do not.
    """
    rows = [row for row in facts.candidates if row.get("speedup") and row.get("accuracy") is not None]
    points = {_name(row): (1.0 / row["speedup"], row["accuracy"]) for row in rows}
    if rows:
        points[BASELINE] = (1.0, rows[0].get("baseline_accuracy", rows[0]["accuracy"] + (rows[0].get("drop") or 0.0)))
    return points


def frontier(points: Mapping[str, tuple[float, float]]) -> list[str]:
    """Names of the points that no other one dominates, from the fastest on."""
    kept: list[str] = []
    best = float("-inf")
    for name, (_, accuracy) in sorted(points.items(), key=lambda item: (item[1][0], -item[1][1])):
        if accuracy > best:
            kept.append(name)
            best = accuracy
    return kept


def pareto_plot(name: str, facts: CompressFacts, budget: float | None) -> str | None:
    """Accuracy against latency: the frontier as a line, what was rejected as crosses, the chosen one ringed."""
    points = points_of(facts)
    if len(points) < 2:
        return None
    figure, axes = axes_of(10.6, 3.6)
    rows = {_name(row): row for row in facts.candidates}
    best = frontier(points)
    axes.plot(*_columns([points[one] for one in best]), color=SERIES[0], linewidth=1.4, alpha=0.6, zorder=1)
    if budget is not None:
        axes.axhline(points[BASELINE][1] - budget, color=MUTED, linewidth=1, linestyle="--", zorder=0)
    for one, (latency, accuracy) in points.items():
        row = rows.get(one, {"accepted": True})
        if row.get("low") is not None:
            drop = (points[BASELINE][1] - row["high"], points[BASELINE][1] - row["low"])
            axes.plot([latency, latency], drop, color=LINE, linewidth=3, zorder=1)
        marker, color = ("o", SERIES[0]) if row["accepted"] else ("x", SERIES[3])
        axes.scatter([latency], [accuracy], s=55, marker=marker, color=color, zorder=3, linewidths=1.6)
        if one == facts.chosen:
            axes.scatter(
                [latency], [accuracy], s=190, facecolors="none", edgecolors=SERIES[1], linewidths=1.8, zorder=3
            )
        if len(points) <= LABELS_MAX or one in best:
            axes.annotate(
                label_of(one), (latency, accuracy), (6, 6), textcoords="offset points", color=TEXT, fontsize=9
            )
    latencies = [latency for latency, _ in points.values()]
    if max(latencies) / min(latencies) > LOG_FROM:
        axes.set_xscale("log")
        ticks = [
            tick for tick in (0.02, 0.05, 0.1, 0.2, 0.5, 1, 2, 5) if min(latencies) / 2 < tick < 2 * max(latencies)
        ]
        axes.xaxis.set_ticks(ticks, [f"{tick:g}" for tick in ticks])
        axes.xaxis.set_ticks([], minor=True)
    axes.set_xlabel("latency, the float graph is 1")
    _metric_axis(axes, str(next(iter(rows.values())).get("metric") or "accuracy"))
    return svg_of(figure, name)


def _metric_axis(axes: Any, metric: str) -> None:
    if metric in SHARES:
        axes.set_ylim(top=min(axes.get_ylim()[1], 1.0 + 0.04 * (1.0 - axes.get_ylim()[0])))  # no share is above 1
        axes.yaxis.set_major_formatter(lambda value, _: f"{100 * value:.4g} %")
    axes.set_ylabel(metric_name(metric))


def _name(row: Mapping[str, Any]) -> str:
    return str(row.get("name", row.get("recipe", "")))


def _columns(pairs: Sequence[tuple[float, float]]) -> tuple[list[float], list[float]]:
    return [x for x, _ in pairs], [y for _, y in pairs]
