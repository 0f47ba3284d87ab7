"""Plots as inline SVG whose colors are the page's CSS variables, so that one drawing suits light and dark.

Invariant: no pyplot and no global state: `Figure` objects and their SVG canvas only; ids differ from figure to
figure, so that many SVGs can stand in one page; text stays text.

Covered: lines over an axis, and what all figures share. Not covered: trials (trials.py), predictions (evaluation.py),
candidates (compression.py); tables and matrices are HTML.
"""

from __future__ import annotations

import io
import math
import re
import warnings
from collections.abc import Mapping, Sequence
from typing import Any

from cluster.telemetry.view import format_value

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
LABEL_CHARACTERS_MAX = 28
TICK_WHOLE, TICK_LONG = 1_000, 100_000_000  # between them a tick has its digits; beyond, `7.8e+10` is shorter
DRAWN_MAX = 1e100  # matplotlib's margins and ticks overflow near a float's end, and no curve is read there
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
    series = {label: drawn(xs, ys) for label, (xs, ys) in series.items()}
    for index, (label, (xs, ys)) in enumerate(series.items()):
        xs, ys = _thin(xs, ys)
        marker = "o" if len(xs) == 1 else None
        axes.plot(xs, ys, color=SERIES[index % len(SERIES)], linewidth=1.7, label=label, marker=marker, markersize=4)
    figure_ticks(axes.yaxis)
    every = [y for _, ys in series.values() for y in ys]
    if log_y and every:
        ticks = log_ticks(min(every), max(every))
        axes.set_yscale("log")
        axes.yaxis.set_ticks(ticks, [tick_text(tick) for tick in ticks])
        axes.yaxis.set_ticks([], minor=True)
    if percent:
        axes.set_ylim(top=min(axes.get_ylim()[1], 1.0 + 0.02 * (1.0 - axes.get_ylim()[0])))
        axes.yaxis.set_major_formatter(lambda value, _: f"{100 * value:g} %")
    axes.set_xlabel(x_label)
    axes.xaxis.get_major_locator().set_params(integer=True)  # updates and epochs are whole
    if len(series) > 1:
        axes.legend(frameon=False, labelcolor=TEXT, fontsize=9, loc="best")
    return svg_of(figure, name)


def can_be_drawn(value: float) -> bool:
    """A finite number with room around it."""
    return math.isfinite(value) and abs(value) <= DRAWN_MAX


def drawn(xs: Sequence[float], ys: Sequence[float]) -> tuple[list[float], list[float]]:
    """The points of a curve that can be drawn; a run that diverged has others."""
    kept = [(x, y) for x, y in zip(xs, ys, strict=True) if can_be_drawn(y)]
    return [x for x, _ in kept], [y for _, y in kept]


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


def label_of(text: Any, limit: int = LABEL_CHARACTERS_MAX) -> str:
    """A text of the user's as a label: on one line, cut in its middle, never read as TeX or as a hidden name."""
    shown = " ".join(str(text).split()) or "“”"
    if len(shown) > limit:
        shown = f"{shown[: limit // 2]}…{shown[-(limit - limit // 2 - 1) :]}"
    shown = shown.replace("$", r"\$")
    return f"\u200b{shown}" if shown.startswith("_") else shown


def figure_ticks(axis: Any) -> None:
    """Numbers along an axis as the page writes them: 200,000 and not 2e5, 0.0005 and not 5.00e-04."""
    axis.set_major_formatter(lambda value, _: tick_text(value))


def tick_text(value: float) -> str:
    value = float(f"{value:.6g}") + 0.0  # no -0, no 0.30000000000000004
    return format_value(value) if TICK_WHOLE <= abs(value) < TICK_LONG else f"{value:g}"


def svg_of(figure: Any, name: str) -> str:
    """The figure as an `<svg>` element with CSS variables for colors."""
    from matplotlib import rc_context
    from matplotlib.backends.backend_svg import FigureCanvasSVG

    buffer = io.StringIO()
    with rc_context({"svg.fonttype": "none", "svg.hashsalt": name}), warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Glyph .* missing")  # matplotlib only measures: the browser draws the text
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


def log_ticks(low: float, high: float) -> list[float]:
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
