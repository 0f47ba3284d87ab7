"""Plots as inline SVG whose colors are the page's CSS variables, so that one drawing suits light and dark.

Invariant: no pyplot and no global state: `Figure` objects and their SVG canvas only; ids differ from figure to
figure, so that many SVGs can stand in one page; text stays text.

Covered: curves, trials. Not covered: tables and matrices (they are HTML).
"""

from __future__ import annotations

import io
import math
import re
from collections.abc import Mapping, Sequence
from typing import Any

from cluster.report.facts import TrialRow

COLORS = {  # stand-ins that no palette uses -> CSS variables of the page
    "#010101": "var(--text)",
    "#020202": "var(--muted)",
    "#030303": "var(--line)",
    "#040401": "var(--c1)",
    "#040402": "var(--c2)",
    "#040403": "var(--c3)",
    "#040404": "var(--c4)",
    "#050505": "var(--panel)",
}
TEXT, MUTED, LINE, PANEL = "#010101", "#020202", "#030303", "#050505"
SERIES = ("#040401", "#040402", "#040403", "#040404")
INCH_PX = 72  # SVG points of matplotlib
SMOOTH_POINTS = 400  # more than a screen has pixels for; longer series are thinned


def line_plot(
    name: str,
    series: Mapping[str, tuple[Sequence[float], Sequence[float]]],
    *,
    x_label: str,
    log_y: bool = False,
    width: float = 5.2,
    percent: bool = False,
) -> str:
    """Lines over a common axis. `name` must be unique in the page."""
    figure, axes = axes_of(width, 2.6)
    for index, (label, (xs, ys)) in enumerate(series.items()):
        xs, ys = _thin(xs, ys)
        marker = "o" if len(xs) == 1 else None
        axes.plot(xs, ys, color=SERIES[index % len(SERIES)], linewidth=1.7, label=label, marker=marker, markersize=4)
    if log_y:
        axes.set_yscale("log")
    if percent:
        axes.set_ylim(top=min(axes.get_ylim()[1], 1.0 + 0.02 * (1.0 - axes.get_ylim()[0])))
        axes.yaxis.set_major_formatter(lambda value, _: f"{100 * value:g} %")
    axes.set_xlabel(x_label)
    axes.xaxis.get_major_locator().set_params(integer=True)  # updates and epochs are whole
    if len(series) > 1:
        axes.legend(frameon=False, labelcolor=TEXT, fontsize=9, loc="best")
    return svg_of(figure, name)


def trial_scatter(name: str, rows: Sequence[TrialRow], paths: Sequence[str], metric: str, best: str | None) -> str:
    """Two searched values against each other; the value's rank is the point's strength, the winner is ringed."""
    figure, axes = axes_of(5.2, 3.2)
    known = [row for row in rows if row.value is not None]
    strength = _strengths(known, metric)
    for row in rows:
        x, y = (_number(row.values[path]) for path in paths)
        if row.name in strength:
            axes.scatter([x], [y], s=70, color=SERIES[0], alpha=0.2 + 0.8 * strength[row.name], linewidths=0)
        else:
            axes.scatter([x], [y], s=50, color=SERIES[3], marker="x", linewidths=1.6)
        if row.name == best:
            axes.scatter([x], [y], s=190, facecolors="none", edgecolors=SERIES[1], linewidths=1.8)
    for axis, path in zip((axes.xaxis, axes.yaxis), paths, strict=True):
        values = sorted({_number(row.values[path]) for row in rows})
        if values[0] > 0 and values[-1] / values[0] > 1.9:
            (axes.set_xscale if axis is axes.xaxis else axes.set_yscale)("log")
            few = len(values) <= 8 and all(value.is_integer() for value in values)
            ticks = values if few else _log_ticks(values[0], values[-1])
            axis.set_ticks(ticks, [f"{tick:g}" for tick in ticks])
            axis.set_ticks([], minor=True)
        axis.set_label_text(path.rsplit(".", 1)[-1].replace("_", " "))
    return svg_of(figure, name)


def trial_curves(name: str, rows: Sequence[TrialRow], metric: str, best: str | None, width: float = 5.2) -> str:
    """The metric of each trial over epochs: where lines end early, ASHA stopped them."""
    figure, axes = axes_of(width, 3.2)
    for row in rows:
        if not row.curve:
            continue
        epochs = sorted(row.curve)
        won = row.name == best
        color, width, order = (SERIES[1], 2.4, 3) if won else (SERIES[0], 1.3, 2)
        ys = [row.curve[epoch] for epoch in epochs]
        axes.plot(epochs, ys, color=color, alpha=1 if won else 0.55, linewidth=width, zorder=order)
        axes.scatter(epochs[-1:], ys[-1:], color=color, s=22, zorder=order, linewidths=0, alpha=1 if won else 0.7)
    axes.set_xlabel("epoch")
    axes.set_ylabel(metric)
    axes.xaxis.get_major_locator().set_params(integer=True)
    return svg_of(figure, name)


def parallel_plot(name: str, rows: Sequence[TrialRow], paths: Sequence[str], metric: str, best: str | None) -> str:
    """Parallel coordinates for more than two searched values; the last axis is the metric."""
    figure, axes = axes_of(10.6, 3.2)
    known = [row for row in rows if row.value is not None]
    strength = _strengths(known, metric)
    columns = [*paths, metric]
    scaled = [_scaled([_coordinate(row, column, metric) for row in known]) for column in columns]
    for index, row in enumerate(known):
        won = row.name == best
        axes.plot(
            range(len(columns)),
            [column[index] for column in scaled],
            color=SERIES[1] if won else SERIES[0],
            alpha=1 if won else 0.15 + 0.55 * strength[row.name],
            linewidth=2.4 if won else 1.2,
        )
    axes.set_xticks(range(len(columns)), [column.rsplit(".", 1)[-1].replace("_", " ") for column in columns])
    axes.set_yticks([])
    axes.grid(axis="x", color=LINE, linewidth=1)
    return svg_of(figure, name)


def axes_of(width: float, height: float) -> tuple[Any, Any]:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), layout="constrained")
    axes = figure.add_subplot()
    figure.patch.set_alpha(0)
    axes.patch.set_alpha(0)
    axes.grid(color=LINE, linewidth=0.7)
    axes.set_axisbelow(True)
    axes.tick_params(which="both", colors=MUTED, labelsize=9, length=0)
    axes.xaxis.label.set(color=MUTED, size=9)
    axes.yaxis.label.set(color=MUTED, size=9)
    for side in axes.spines.values():
        side.set_visible(False)
    return figure, axes


def svg_of(figure: Any, name: str) -> str:
    """The figure as an `<svg>` element with CSS variables for colors."""
    from matplotlib import rc_context
    from matplotlib.backends.backend_svg import FigureCanvasSVG

    buffer = io.StringIO()
    with rc_context({"svg.fonttype": "none", "svg.hashsalt": name}):
        FigureCanvasSVG(figure).print_svg(
            buffer, metadata={"Date": None, "Creator": None, "Type": None, "Format": None}
        )
    text = buffer.getvalue()
    text = text[text.index("<svg") :]
    text = re.sub(r"<metadata>.*?</metadata>", "", text, flags=re.S)
    text = re.sub(r"font: ([\d.]+)px [^;\"]*", r"font-size: \1px", text)
    for stand_in, variable in COLORS.items():
        text = text.replace(stand_in, variable)
    used = set(re.findall(r"#([\w.-]+)[\")]", text))
    return re.sub(r' id="([\w.-]+)"', lambda found: found[0] if found[1] in used else "", text)


def _log_ticks(low: float, high: float) -> list[float]:
    """1, 2 and 5 times powers of ten inside a range (only the powers where it spans three decades or more)."""
    steps = (1, 2, 5) if high / low < 1e3 else (1,)
    powers = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    return [step * 10.0**power for power in powers for step in steps if low * 0.9 <= step * 10.0**power <= high * 1.1]


def _thin(xs: Sequence[float], ys: Sequence[float]) -> tuple[Sequence[float], Sequence[float]]:
    """At most SMOOTH_POINTS points, each the mean of a stretch."""
    stride = math.ceil(len(xs) / SMOOTH_POINTS)
    if stride <= 1:
        return xs, ys
    starts = range(0, len(xs), stride)
    return [xs[start] for start in starts], [
        sum(ys[start : start + stride]) / len(ys[start : start + stride]) for start in starts
    ]


def _strengths(rows: Sequence[TrialRow], metric: str) -> dict[str, float]:
    """Rank of each trial's value between 0 (worst) and 1 (best)."""
    lower = metric.endswith(("loss", "error", "mae", "mse", "rmse"))
    order = sorted(rows, key=lambda row: row.value or 0.0, reverse=lower)
    return {row.name: index / max(1, len(order) - 1) for index, row in enumerate(order)}


def _number(value: Any) -> float:
    """A plottable stand-in for a value that is no number."""
    return float(value) if isinstance(value, int | float) else float(sum(map(ord, str(value))) % 97)


def _coordinate(row: TrialRow, column: str, metric: str) -> float:
    return float(row.value or 0.0) if column == metric else _number(row.values.get(column))


def _scaled(values: Sequence[float]) -> list[float]:
    """To 0..1, on a log scale where the values span more than a decade."""
    if values and min(values) > 0 and max(values) / min(values) > 10:
        values = [math.log(value) for value in values]
    low, high = min(values, default=0.0), max(values, default=1.0)
    return [(value - low) / (high - low) if high > low else 0.5 for value in values]
