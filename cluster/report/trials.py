"""Figures of a search: every trial by epochs, and where the trials lie in the space that was searched.

Invariant: every trial that ended is drawn, also one that has no value (a cross); an axis of choices has a place and a
name for each choice that was tried.

Covered: two searched values (scatter), more (parallel coordinates). Not covered: the table of trials (the template).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

from cluster.report.facts import TrialRow
from cluster.report.figures import LINE, MUTED, PANEL, SERIES, TEXT, axes_of, label_of, log_ticks, svg_of
from cluster.telemetry.view import format_metric, format_value

FAILED = frozenset({"diverged", "oom", "failed", "rejected"})  # of `trials.json` and of events
VALUES_SHOWN_MAX = 6  # a numeric axis with more values than this is marked at its ends
CHOICES_SHOWN_MAX = 12
NO_VALUE_AT = -0.12  # of the metric's axis, whose values lie from 0 to 1
LABEL_MAX = 18  # characters beside an axis


@dataclass(frozen=True)
class Scale:
    """Where the values of one searched path lie: a choice by its number, a number by itself or its logarithm."""

    place: Callable[[Any], float]
    """Value -> 0 to 1."""
    ticks: tuple[tuple[float, str], ...]
    """(0 to 1, label)."""


def scale_of(values: Sequence[Any]) -> Scale:
    """Numbers on a line (a logarithmic one where they span more than a decade), anything else as choices."""
    known = [value for value in values if value is not None]
    if known and all(isinstance(value, int | float) and not isinstance(value, bool) for value in known):
        return _number_scale([float(value) for value in known])
    return _choice_scale(values)


def _number_scale(values: Sequence[float], label: Callable[[float], str] = format_value) -> Scale:
    different = sorted(set(values))
    log = different[0] > 0 and different[-1] / different[0] > 10
    low, high = (math.log(different[0]), math.log(different[-1])) if log else (different[0], different[-1])

    def place(value: Any) -> float:
        if value is None or high <= low:
            return 0.5
        return ((math.log(value) if log else float(value)) - low) / (high - low)

    shown = different if len(different) <= VALUES_SHOWN_MAX else [different[0], different[-1]]
    labels: list[tuple[float, str]] = []
    for value in shown:
        if not labels or place(value) - labels[-1][0] >= 0.08:  # closer ones would lie on one another
            labels.append((place(value), label(value)))
    return Scale(place, tuple(labels))


def _choice_scale(values: Sequence[Any]) -> Scale:
    choices = list(dict.fromkeys(choice_name(value) for value in values))
    places = {name: index / (len(choices) - 1) if len(choices) > 1 else 0.5 for index, name in enumerate(choices)}
    shown = choices if len(choices) <= CHOICES_SHOWN_MAX else [choices[0], choices[-1]]
    return Scale(
        lambda value: places[choice_name(value)], tuple((places[name], label_of(name, LABEL_MAX)) for name in shown)
    )


def choice_name(value: Any) -> str:
    """A searched value as the spec writes it: `true`, `null`, `adamw`, `0.003`."""
    if value is None:
        return "null"
    return str(value).lower() if isinstance(value, bool) else format_value(value)


def trial_scatter(name: str, rows: Sequence[TrialRow], paths: Sequence[str], metric: str, best: str | None) -> str:
    """Two searched values against each other; the value's rank is the point's strength, the winner is ringed."""
    figure, axes = axes_of(5.2, 3.2)
    strength = _strengths([row for row in rows if row.value is not None], metric)
    scales = [_plain_scale([row.values.get(path) for row in rows]) for path in paths]
    for row in rows:
        x, y = (place(row.values.get(path)) for path, (place, _, _) in zip(paths, scales, strict=True))
        if row.name in strength:
            axes.scatter([x], [y], s=70, color=SERIES[0], alpha=0.2 + 0.8 * strength[row.name], linewidths=0)
        elif not has_failed(row):
            axes.scatter([x], [y], s=30, color=MUTED, linewidths=0)  # it still runs
        if has_failed(row):
            axes.scatter([x], [y], s=50, color=SERIES[3], marker="x", linewidths=1.6)
        if row.name == best:
            axes.scatter([x], [y], s=190, facecolors="none", edgecolors=SERIES[1], linewidths=1.8)
    for axis, path, (_, ticks, log) in zip((axes.xaxis, axes.yaxis), paths, scales, strict=True):
        if log:
            (axes.set_xscale if axis is axes.xaxis else axes.set_yscale)("log")
        if ticks:
            axis.set_ticks([at for at, _ in ticks], [label for _, label in ticks])
            axis.set_ticks([], minor=True)
        axis.set_label_text(_title(path))
    return svg_of(figure, name)


def _plain_scale(values: Sequence[Any]) -> tuple[Callable[[Any], float], list[tuple[float, str]], bool]:
    """Places, ticks and whether the axis is logarithmic: numbers keep their own scale, choices are numbered."""
    numbers = [float(value) for value in values if isinstance(value, int | float) and not isinstance(value, bool)]
    if len(numbers) < len(values):
        scale = _choice_scale(values)
        return scale.place, list(scale.ticks), False
    different = sorted(set(numbers))
    if different[0] <= 0 or different[-1] / different[0] <= 1.9:
        return float, [], False
    few = len(different) <= 8 and all(value.is_integer() for value in different)
    return float, [(tick, f"{tick:g}") for tick in (different if few else log_ticks(different[0], different[-1]))], True


def trial_curves(name: str, rows: Sequence[TrialRow], metric: str, best: str | None, width: float = 5.2) -> str:
    """The metric of each trial over epochs: a line that ends early was stopped by ASHA, a cross failed."""
    figure, axes = axes_of(width, 3.2)
    for row in rows:
        if not row.curve:
            continue
        epochs = sorted(row.curve)
        won = row.name == best
        color, line_width, order = (SERIES[1], 2.4, 3) if won else (SERIES[0], 1.3, 2)
        ys = [row.curve[epoch] for epoch in epochs]
        axes.plot(epochs, ys, color=color, alpha=1 if won else 0.55, linewidth=line_width, zorder=order)
        end = {"color": SERIES[3], "marker": "x", "linewidths": 1.6} if has_failed(row) else {"linewidths": 0}
        alpha = 1 if won or has_failed(row) else 0.7
        axes.scatter(epochs[-1:], ys[-1:], **{"color": color, "s": 22, "zorder": order + 1, "alpha": alpha} | end)
    _mark_without_curve(axes, [row for row in rows if not row.curve and has_failed(row)])
    axes.set_xlabel("epoch")
    axes.set_ylabel(metric)
    axes.xaxis.get_major_locator().set_params(integer=True)
    return svg_of(figure, name)


def _mark_without_curve(axes: Any, rows: Sequence[TrialRow]) -> None:
    """Crosses along the top edge, above epoch 0: trials that failed before they had a value, by their names."""
    if not rows:
        return
    edge = axes.get_xaxis_transform()  # x in epochs, y from 0 (bottom) to 1 (top)
    for index, row in enumerate(rows):
        y = 0.96 - 0.9 * index / max(10, len(rows))
        axes.scatter([0], [y], color=SERIES[3], marker="x", s=30, linewidths=1.6, transform=edge, zorder=4)
        if len(rows) <= CHOICES_SHOWN_MAX:
            axes.annotate(label_of(row.name), (0, y), (6, 0), xycoords=edge, textcoords="offset points", color=MUTED,
                          fontsize=8, va="center")  # fmt: skip
    axes.set_xlim(left=-0.15)


def parallel_plot(name: str, rows: Sequence[TrialRow], paths: Sequence[str], metric: str, best: str | None) -> str:
    """Parallel coordinates for more than two searched values; the last axis is the metric.

    A trial that failed is a dashed line that ends in a cross: at its last value, or below the metric's axis.
    """
    figure, axes = axes_of(10.6, 3.4)
    strength = _strengths([row for row in rows if row.value is not None], metric)
    scales = [scale_of([row.values.get(path) for row in rows]) for path in paths]
    values = [row.value for row in rows if row.value is not None]
    reached = _number_scale(values, partial(format_metric, metric)) if values else Scale(lambda _: 0.5, ())
    for row in rows:
        if row.value is None and not has_failed(row):
            continue  # it still runs
        places = [scale.place(row.values.get(path)) for path, scale in zip(paths, scales, strict=True)]
        places.append(NO_VALUE_AT if row.value is None else reached.place(row.value))
        won, failed = row.name == best, has_failed(row)
        axes.plot(
            range(len(places)),
            places,
            color=SERIES[3] if failed else SERIES[1] if won else SERIES[0],
            alpha=1 if won else 0.7 if failed else 0.15 + 0.55 * strength.get(row.name, 0.0),
            linewidth=2.4 if won else 1.2,
            linestyle="--" if failed else "-",
            zorder=3 if won else 2,
        )
        if failed:
            axes.scatter([len(places) - 1], places[-1:], color=SERIES[3], marker="x", s=36, linewidths=1.6, zorder=4)
    without = any(row.value is None and has_failed(row) for row in rows)
    shown = [*(scale.ticks for scale in scales), (*reached.ticks, *([(NO_VALUE_AT, "no value")] if without else []))]
    for column, ticks in enumerate(shown):
        for at, label in ticks:
            box = {"facecolor": PANEL, "edgecolor": "none", "alpha": 0.8, "pad": 0.8}
            axes.annotate(label, (column, at), (5, 0), textcoords="offset points", color=TEXT, fontsize=8, va="center",
                          bbox=box, zorder=5)  # fmt: skip
    axes.set_xticks(range(len(shown)), [*(_title(path) for path in paths), metric])
    axes.set_xlim(-0.1, len(shown) - 1 + 0.35)
    axes.set_yticks([])
    axes.grid(axis="x", color=LINE, linewidth=1)
    return svg_of(figure, name)


def _title(path: str) -> str:
    return label_of(path.rsplit(".", 1)[-1].replace("_", " "))


def has_failed(row: TrialRow) -> bool:
    """Out of memory, diverged or ended by an error; what the scheduler stopped has not failed."""
    return row.state in FAILED


def _strengths(rows: Sequence[TrialRow], metric: str) -> dict[str, float]:
    """Rank of each trial's value between 0 (worst) and 1 (best)."""
    lower = metric.endswith(("loss", "error", "mae", "mse", "rmse"))
    order = sorted(rows, key=lambda row: row.value or 0.0, reverse=lower)
    return {row.name: index / max(1, len(order) - 1) for index, row in enumerate(order)}
