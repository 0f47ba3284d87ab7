"""Quality in the report: curves of predictions, importance of the raw columns, and the baseline to compare with.

Invariant: draws what the evaluate stage wrote (`evidence.json`, facts) and computes nothing anew; whatever an older
run lacks is left out.

Covered: classification, regression. Not covered: the confusion matrix and the table of classes (page.py).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from markupsafe import Markup

from cluster.report.facts import RunReport
from cluster.report.figures import MUTED, PANEL, SERIES, TEXT, axes_of, figure_ticks, label_of, svg_of
from cluster.store.stage_facts import EvaluateFacts
from cluster.telemetry.final import baselines_of
from cluster.telemetry.view import format_metric, format_value

SIZE = (5.2, 3.8)
COLUMNS_SHOWN_MAX = 20
BAR_INCHES = 0.27
LEARNED = 0.05  # balanced accuracy above that of a guess: it separates classes
CLASSES_NAMED = 2  # of many classes, the ones that are ranked worst have a color and a name
NAMES = {"rmse": "RMSE", "mae": "MAE", "r2": "R²", "roc_auc": "ROC AUC", "macro_f1": "macro F1"}
FIRST = ("accuracy", "rmse", "r2", "mae")  # of the table of metrics
LOWER_IS_BETTER = frozenset({"loss", "rmse", "mae", "calibration_error"})


@dataclass(frozen=True)
class Panel:
    """One figure with its title and what it shows."""

    title: str
    figure: Markup
    note: str


def panels_of(report: RunReport) -> list[Panel]:
    """Every figure about predictions that the run has evidence for."""
    curves = report.evidence.get("curves") or {}
    found = _regression(curves) if "predicted" in curves else _classification(curves, report.evaluated)
    importance = report.evidence.get("importance")
    return [*([_importance(importance)] if importance and importance.get("columns") else []), *found]


def _classification(curves: Mapping[str, Any], facts: EvaluateFacts) -> list[Panel]:
    found = []
    if curves.get("roc"):
        svg = _ranking("roc", curves["roc"], "false positive rate", "true positive rate")
        note = f"Area under the curve: {_areas(curves['roc'])}. The dashed line is chance{_rows_said(curves)}."
        found.append(Panel("ROC", svg, note))
    if curves.get("precision_recall"):
        svg = _ranking("precision-recall", curves["precision_recall"], "recall", "precision")
        note = f"Average precision: {_areas(curves['precision_recall'])}{_chance(curves['precision_recall'])}."
        found.append(Panel("Precision and recall", svg, note))
    if (curves.get("calibration") or {}).get("x"):
        found.append(_calibration(curves["calibration"], facts.metrics))
    return found


def _ranking(name: str, curves: Sequence[Mapping[str, Any]], x_label: str, y_label: str) -> Markup:
    """Averages and the worst classes by color and name, the other classes as thin lines."""
    figure, axes = axes_of(*SIZE)
    named = {id(curve): color for curve, color in zip(_named(curves), SERIES, strict=False)}
    for curve in curves:
        color = named.get(id(curve))
        main = curve["kind"] != "class" or len(curves) == 1
        style = {"color": color or MUTED, "linewidth": 2.0 if main else 1.4 if color else 0.8}
        axes.plot(curve["x"], curve["y"], alpha=1 if color else 0.45, zorder=3 if color else 2, **style)
    if name == "roc":
        axes.plot([0, 1], [0, 1], color=MUTED, linewidth=1, linestyle="--", zorder=1)
    elif len(curves) == 1:
        axes.axhline(curves[0]["share"], color=MUTED, linewidth=1, linestyle="--", zorder=1)
    if len(curves) > 1:
        _legend(axes, [(label_of(_called(curve)), named[id(curve)]) for curve in _named(curves)], name == "roc")
    axes.set_xlabel(x_label)
    axes.set_ylabel(y_label)
    axes.set_xlim(-0.02, 1.02)
    axes.set_ylim(-0.02, 1.03)
    return Markup(svg_of(figure, f"curve-{name}"))


def _legend(axes: Any, entries: Sequence[tuple[str, str]], right: bool) -> None:
    from matplotlib.lines import Line2D

    handles = [Line2D([], [], color=color, linewidth=2) for _, color in entries]
    place = "lower right" if right else "lower left"
    axes.legend(handles, [text for text, _ in entries], frameon=False, labelcolor=TEXT, fontsize=9, loc=place)


def _named(curves: Sequence[Mapping[str, Any]]) -> list[Mapping[str, Any]]:
    """The averages, and the classes with the smallest areas; a lone curve."""
    averages = [curve for curve in curves if curve["kind"] != "class"]
    classes = sorted((curve for curve in curves if curve["kind"] == "class"), key=lambda curve: curve["area"])
    mean = next((curve["area"] for curve in averages if curve["kind"] == "macro"), 1.0)
    return [*averages, *(curve for curve in classes[:CLASSES_NAMED] if not averages or curve["area"] < mean)]


def _areas(curves: Sequence[Mapping[str, Any]]) -> str:
    shown = _named(curves)
    if len(shown) == 1:
        return f"{shown[0]['area']:.4f} for {_called(shown[0])}"
    return ", ".join(f"{_called(curve)} {curve['area']:.4f}" for curve in shown)


def _called(curve: Mapping[str, Any]) -> str:
    return f"“{curve['name']}”" if curve["kind"] == "class" else str(curve["name"])


def _chance(curves: Sequence[Mapping[str, Any]]) -> str:
    if len(curves) > 1:
        return ""
    return f"; the dashed line is its share of the rows, {100 * curves[0]['share']:.2f} %, which is chance"


def _rows_said(curves: Mapping[str, Any]) -> str:
    if curves["rows"] >= curves["rows_all"]:
        return ""
    return f"; drawn from {curves['rows']:,} of {curves['rows_all']:,} test rows"


def _calibration(bins: Mapping[str, Any], metrics: Mapping[str, float]) -> Panel:
    """Points on the diagonal: what is called 80 % sure is right in 80 % of the cases."""
    figure, axes = axes_of(*SIZE)
    axes.plot([0, 1], [0, 1], color=MUTED, linewidth=1, linestyle="--", zorder=1)
    axes.plot(bins["x"], bins["y"], color=SERIES[0], linewidth=1.2, alpha=0.5, zorder=2)
    axes.vlines(bins["x"], bins["low"], bins["high"], color=SERIES[0], linewidth=1.6, alpha=0.5, zorder=2)
    most = max(bins["rows"])
    sizes = [16 + 90 * rows / most for rows in bins["rows"]]
    axes.scatter(bins["x"], bins["y"], s=sizes, color=SERIES[0], linewidths=0, zorder=3)
    what = "the answer" if bins["about"] is None else f"“{label_of(bins['about'])}”"
    axes.set_xlabel(f"stated probability of {what}")
    axes.set_ylabel("share that came true")
    axes.set_xlim(-0.02, 1.02)
    axes.set_ylim(-0.02, 1.03)
    error = metrics.get("calibration_error")
    said = "" if error is None else f" Calibration error of the answer: {error:.4f}."
    note = f"On the dashed line, stated and true agree; larger dots hold more rows, bars are 95 % intervals.{said}"
    return Panel("Calibration", Markup(svg_of(figure, "calibration")), note)


def _regression(points: Mapping[str, Any]) -> list[Panel]:
    figure, axes = axes_of(*SIZE)
    both = [*points["predicted"], *points["actual"]]
    axes.plot([min(both), max(both)], [min(both), max(both)], color=MUTED, linewidth=1, linestyle="--", zorder=1)
    dots = {"s": 16, "color": SERIES[0], "alpha": 0.5, "linewidths": 0, "zorder": 2}
    axes.scatter(points["predicted"], points["actual"], **dots)
    _value_axes(axes, "predicted", "actual")
    shown = (
        f"{points['rows']:,} of {points['rows_all']:,} test rows"
        if points["rows"] < points["rows_all"]
        else "test rows"
    )
    compared = Panel(
        "Predicted and actual values", Markup(svg_of(figure, "predicted-actual")),
        f"A dot is one of the {shown}; on the dashed line, the prediction is right.",
    )  # fmt: skip

    figure, axes = axes_of(*SIZE)
    axes.axhline(0, color=MUTED, linewidth=1, linestyle="--", zorder=1)
    pairs = zip(points["actual"], points["predicted"], strict=True)
    axes.scatter(points["predicted"], [actual - predicted for actual, predicted in pairs], **dots)
    axes.plot(points["trend"]["x"], points["trend"]["y"], color=SERIES[1], linewidth=2, zorder=3)
    _value_axes(axes, "predicted", "actual − predicted")
    spread = {key: format_value(value) for key, value in points["residuals"].items()}
    note = (
        f"Nine of ten residuals lie between {spread['p05']} and {spread['p95']}, the median is {spread['p50']}. "
        "The line joins the medians of tenths of the rows: where it slopes or bends, something is left to learn."
    )
    return [compared, Panel("Residuals", Markup(svg_of(figure, "residuals")), note)]


def _value_axes(axes: Any, x_label: str, y_label: str) -> None:
    axes.set_xlabel(x_label)
    axes.set_ylabel(y_label)
    for axis in (axes.xaxis, axes.yaxis):
        axis.set_major_locator(_few_ticks())
        figure_ticks(axis)


def _few_ticks() -> Any:
    from matplotlib.ticker import MaxNLocator

    return MaxNLocator(6, steps=[1, 2, 2.5, 5, 10])  # `1,200,000` needs room


def _importance(importance: Mapping[str, Any]) -> Panel:
    """Bars with one deviation on both sides, the most important column on top."""
    rows = importance["columns"][:COLUMNS_SHOWN_MAX]
    figure, axes = axes_of(SIZE[0], max(1.6, 0.7 + BAR_INCHES * len(rows)))
    places = list(range(len(rows)))[::-1]
    axes.barh(places, [row["mean"] for row in rows], height=0.62, color=SERIES[0], alpha=0.85, zorder=2)
    ends = [(row["mean"] - row["deviation"], row["mean"] + row["deviation"]) for row in rows]
    axes.hlines(places, *zip(*ends, strict=True), color=TEXT, linewidth=1.1, zorder=3)
    axes.axvline(0, color=MUTED, linewidth=1, zorder=1)
    axes.set_yticks(places, [label_of(row["name"]) for row in rows])
    axes.grid(visible=False, axis="y")
    figure_ticks(axes.xaxis)
    axes.set_xlabel(f"rise of the test {metric_name(importance['metric'])}")
    for place, row, (_, high) in zip(places, rows, ends, strict=True):
        if row.get("accuracy") is not None and abs(row["accuracy"]) >= 0.0005:
            box = {"facecolor": PANEL, "edgecolor": "none", "alpha": 0.7, "pad": 0.5}
            style = {"fontsize": 8, "color": MUTED, "textcoords": "offset points", "va": "center", "bbox": box}
            axes.annotate(f"{-100 * row['accuracy']:+.1f} points", (max(high, 0), place), (5, 0), **style)
    axes.margins(x=0.16)
    left_out = importance["columns_all"] - len(rows)
    more = f" {left_out:,} columns below these are not drawn." if left_out > 0 else ""
    points = " The points are what happens to the accuracy." if any("accuracy" in row for row in rows) else ""
    note = (
        f"How much worse the network answers when a column's values change rows, over {importance['repeats']} shuffles "
        f"of {importance['rows']:,} test rows; lines are one standard deviation.{points} Columns that say the same "
        f"share their importance.{more}"
    )
    return Panel("Importance of the columns", Markup(svg_of(figure, "importance")), note)


def compared_metrics(facts: EvaluateFacts) -> dict[str, Any] | None:
    """The metrics of the network beside those of the baselines, or None where the run has none of its own."""
    metrics = facts.metrics
    if not metrics:
        return None
    baselines = baselines_of(facts.baseline)
    rows = []
    for name in (*(name for name in FIRST if name in metrics), *(name for name in metrics if name not in FIRST)):
        value = metrics[name]
        others = [baseline["metrics"].get(name) for baseline in baselines]
        best = _best([value, *others], name)
        cells = [
            {"figure": "–" if one is None else format_metric(name, one), "best": one is not None and one == best}
            for one in (value, *others)
        ]
        rows.append({"name": metric_name(name), "cells": cells})
    return {
        "names": [baseline["name"] for baseline in baselines],
        "rows": rows,
        "notes": _notes(facts),
        "beaten": beaten_by(metrics, facts),
    }


def metric_name(name: str) -> str:
    """`validation.macro_f1` -> `validation macro F1`."""
    head, dot, last = name.rpartition(".")
    return f"{head.replace('.', ' ')}{' ' if dot else ''}{NAMES.get(last, last.replace('_', ' '))}"


def _best(values: Sequence[float | None], name: str) -> float | None:
    known = [value for value in values if value is not None]
    if len(known) < 2:
        return None
    return min(known) if name in LOWER_IS_BETTER else max(known)


def _notes(facts: EvaluateFacts) -> list[str]:
    notes = []
    model = (facts.baseline or {}).get("model")
    if model:
        some = model["rows"] < model["rows_all"]
        rows = f"{model['rows']:,} of {model['rows_all']:,}" if some else f"all {model['rows']:,}"
        said = f"{model['name']}: a quick scikit-learn model that nothing was tuned for, on {rows} training rows."
        asked, tested = model.get("rows_test", 0), model.get("rows_test_all", 0)
        if asked < tested:
            said += f" It was asked for {asked:,} of {tested:,} test rows."
        notes.append(said[0].upper() + said[1:])
    return notes


def headline_of(metrics: Mapping[str, float]) -> str | None:
    """The metric that a run is judged by."""
    return next((name for name in ("accuracy", "rmse") if name in metrics), None)


def beaten_by(metrics: Mapping[str, float], facts: EvaluateFacts) -> str:
    """What it means that a baseline's headline is better than the network's; empty where none is."""
    name = headline_of(metrics)
    found = facts.baseline or {}

    def better(baseline: Mapping[str, Any] | None) -> bool:
        other = None if not baseline or name is None else baseline["metrics"].get(name)
        return other is not None and name is not None and _best([metrics[name], other], name) != metrics[name]

    chance = 1 / max(2, len(facts.per_class))
    if better(found.get("constant")) and metrics.get("balanced_accuracy", 0.0) > chance + LEARNED:
        return (
            "One answer for every row is right more often, because the classes are unequal: judge this network by "
            "balanced accuracy, macro F1 and average precision."
        )
    if better(found.get("constant")):
        return (
            "One answer for every row does better than the network: nothing that it learned holds on the test rows. "
            "Look at the training curves, and at the learning rate first."
        )
    if better(found.get("model")):
        return (
            "The quick model does better than the network on the same rows: a search over learning rate, "
            "regularization and epochs should pay off."
        )
    return ""
