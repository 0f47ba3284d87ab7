"""From a run's facts to one HTML file: figures, tables, the spec with its reasons. Nothing is fetched by the page."""

from __future__ import annotations

import platform
from collections.abc import Mapping
from importlib import metadata
from pathlib import Path
from typing import Any

import yaml
from jinja2 import Environment, PackageLoader, StrictUndefined, select_autoescape
from markupsafe import Markup

from cluster.atomic import write_text
from cluster.report import compression, evaluation, figures, trials
from cluster.report.facts import RunReport, gather
from cluster.store.run_folder import RunFolder
from cluster.store.stage_facts import PrepareFacts
from cluster.telemetry.events import Record
from cluster.telemetry.final import baseline_note, final_commands, final_rows
from cluster.telemetry.view import counted, format_bytes, format_duration, format_metric, format_value, short_name

PACKAGES_SHOWN = ("manta-ml", "ray", "torch", "onnx", "onnxruntime", "optuna", "numpy", "scikit-learn")
LOG_FROM = 8  # a loss that falls less than this is read more easily on a linear axis
CLASSES_SHOWN_MAX = 30  # a larger matrix cannot be read; its largest confusions are listed instead


def render_report(run: RunFolder, last: Record | None = None) -> Path:
    """Gather, draw, write atomically."""
    report = gather(run, last)
    template = _environment().get_template("report.html.j2")
    write_text(run.report, template.render(report=report, **_parts(report)))
    return run.report


def _environment() -> Environment:
    environment = Environment(
        loader=PackageLoader("cluster.report"),
        autoescape=select_autoescape(default=True, default_for_string=True),
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {
        "value": format_value,
        "duration": format_duration,
        "bytes": format_bytes,
        "short": short_name,
        "choice": trials.choice_name,
        "counted": counted,
        "named": evaluation.metric_name,
        "metric": lambda value, name: format_metric(name, value),
    }
    return environment


def _parts(report: RunReport) -> dict[str, Any]:
    summary = report.view.summary or {}
    facts, prepared = report.evaluated, PrepareFacts.of(report.records)
    return {
        "style": Markup(_style()),  # our own file
        "state": _state(report),
        "tiles": _tiles(report),
        "rows": final_rows(summary, report.view.duration_s),
        "commands": final_commands(summary),
        "curves": _curves(report),
        "trial_figures": _trial_figures(report),
        "failed_trials": sum(map(trials.has_failed, report.trials)),
        "confusion": _confusion(report),
        "per_class": facts.per_class,
        "compared": evaluation.compared_metrics(facts),
        "panels": evaluation.panels_of(report),
        "selection": prepared.selection if prepared else None,
        "repeats": report.searched.repeats,
        "candidates": compression.candidate_rows(report.compressed, _budget(report)),
        "pareto": Markup(compression.pareto_plot("pareto", report.compressed, _budget(report)) or ""),
        "stage_times": _stage_times(report),
        "environment": _environment_rows(report),
        "spec_text": _spec_text(report),
        "latency": {key: value for key, value in report.details("predict").items() if isinstance(value, int | float)},
    }


def _style() -> str:
    return (Path(__file__).parent / "templates" / "style.css").read_text(encoding="utf-8")


def _state(report: RunReport) -> str:
    if report.view.error is not None:
        return "failed"
    return "finished" if report.view.summary is not None else "unfinished"


def _tiles(report: RunReport) -> list[dict[str, str]]:
    """The headline figures: at most five."""
    summary = report.view.summary or {}
    facts = report.evaluated
    metrics = facts.metrics
    tiles: list[dict[str, str]] = []
    for name in ("accuracy", "rmse", "r2", "loss"):
        if name in metrics and len(tiles) < 2:
            note = baseline_note(name, facts.baseline, short=bool(tiles))
            shown = f"test {evaluation.metric_name(name)}"
            tiles.append({"name": shown, "figure": format_metric(name, metrics[name]), "note": note})
    before, after = summary.get("size_before_bytes"), summary.get("size_after_bytes")
    if after is not None:
        note = f"{before / after:.1f}× smaller than {format_bytes(before)}" if before and before > after else ""
        tiles.append({"name": "model size", "figure": format_bytes(after), "note": note or summary.get("variant", "")})
    latency = report.details("predict")
    if "latency_ms_p50" in latency:
        note = (
            f"p99 {format_value(round(float(latency['latency_ms_p99']), 2))} ms" if "latency_ms_p99" in latency else ""
        )
        figure = f"{format_value(round(float(latency['latency_ms_p50']), 2))} ms"
        tiles.append({"name": "latency p50", "figure": figure, "note": note})
    if report.view.duration_s is not None:
        tiles.append({"name": "run took", "figure": format_duration(report.view.duration_s), "note": ""})
    return tiles


def _curves(report: RunReport) -> list[tuple[str, Markup]]:
    """(title, svg) of every training curve there is data for."""
    steps, epochs = report.steps, report.epochs
    found: list[tuple[str, Markup]] = []
    losses: dict[str, tuple[list[float], list[float]]] = {}
    if steps:
        losses["training, while updating"] = ([s.update for s in steps], [s.loss for s in steps])
    for name in ("train.loss", "validation.loss"):
        points = [(e.update, e.metrics[name]) for e in epochs if name in e.metrics]
        if points and not (name == "train.loss" and steps):
            losses[name.replace(".", " ")] = ([x for x, _ in points], [y for _, y in points])
    if losses:
        every = [y for _, ys in losses.values() for y in ys if figures.can_be_drawn(y)]
        wide = bool(every) and min(every) > 0 and max(every) / min(every) > LOG_FROM
        found.append(("Loss", Markup(figures.line_plot("loss", losses, x_label="update", log_y=wide))))
    names = sorted({n for e in epochs for n in e.metrics if n.startswith("validation.") and not n.endswith("loss")})
    for name in names[:2]:
        xs, ys = [e.epoch for e in epochs if name in e.metrics], [e.metrics[name] for e in epochs if name in e.metrics]
        percent = format_metric(name, 0.5).endswith("%")
        svg = figures.line_plot(name, {name: (xs, ys)}, x_label="epoch", percent=percent)
        title = evaluation.metric_name(name)
        found.append((title[0].upper() + title[1:], Markup(svg)))
    for title, field in (("Learning rate", "learning_rate"), ("Samples per second", "samples_per_s")):
        if steps:
            series = {title: ([s.update for s in steps], [getattr(s, field) for s in steps])}
            found.append((title, Markup(figures.line_plot(field, series, x_label="update"))))
    return found


def _trial_figures(report: RunReport) -> list[tuple[str, Markup]]:
    rows = report.trials
    if len(rows) < 2:
        return []
    paths = report.trial_paths
    found: list[tuple[str, Markup]] = []
    if any(row.curve for row in rows):
        width = 5.2 if len(paths) == 2 else 10.6  # beside the scatter plot, or a row of its own
        svg = trials.trial_curves("trial-curves", rows, report.trial_metric, report.best_trial, width)
        found.append(("Each trial, epoch by epoch", Markup(svg)))
    if len(paths) == 2:
        svg = trials.trial_scatter("trial-scatter", rows, paths, report.trial_metric, report.best_trial)
        found.append(("Where trials lie", Markup(svg)))
    elif len(paths) > 2:
        svg = trials.parallel_plot("trial-parallel", rows, paths, report.trial_metric, report.best_trial)
        found.append(("Values and what came of them", Markup(svg)))
    return found


def _confusion(report: RunReport) -> dict[str, Any] | None:
    """Rows are the truth, columns the answer; shades are shares of a row."""
    facts = report.evaluated
    matrix = facts.confusion
    if not matrix:
        return None
    names = [str(item["class"]) for item in facts.per_class] or [str(i) for i in range(len(matrix))]
    sums = [sum(row) or 1 for row in matrix]
    wrong = sorted(
        ((matrix[i][j], names[i], names[j]) for i in range(len(matrix)) for j in range(len(matrix)) if i != j),
        reverse=True,
    )
    cells = [
        [{"count": n, "share": n / sums[i], "right": i == j} for j, n in enumerate(row)] for i, row in enumerate(matrix)
    ]
    return {
        "names": names,
        "cells": cells if len(matrix) <= CLASSES_SHOWN_MAX else None,
        "wrong": [item for item in wrong if item[0]][:8],
    }


def _budget(report: RunReport) -> float | None:
    section = report.resolved.spec.compress if report.resolved else None
    return section.budget.max_drop if section else None


def _stage_times(report: RunReport) -> list[dict[str, Any]]:
    times = {name: record.duration_s for name, record in report.records.items()}
    for name, stage in report.view.stages.items():
        if stage.duration_s is not None and name not in times:
            times[name] = stage.duration_s
    longest = max(times.values(), default=1.0) or 1.0
    names = [
        *(name for name in report.view.stages if name in times),
        *(n for n in times if n not in report.view.stages),
    ]
    return [
        {
            "name": name,
            "seconds": times[name],
            "share": 100 * times[name] / longest,
            "status": report.view.stages[name].status if name in report.view.stages else "done",
            "headline": report.records[name].headline if name in report.records else "",
        }
        for name in names
    ]


def _environment_rows(report: RunReport) -> list[tuple[str, str]]:
    rows: list[tuple[str, str]] = []
    if report.resolved:
        host = report.resolved.host
        gpus = ", ".join(gpu.name for gpu in host.gpus) or "none"
        rows += [
            ("hosts", str(host.nodes)),
            ("CPU cores", format_value(host.cpu_cores)),
            ("memory", format_bytes(host.memory_bytes)),
            ("GPUs", gpus),
        ]
    rows += [
        ("system", f"{platform.system()} {platform.release()} {platform.machine()}"),
        ("Python", platform.python_version()),
    ]
    for name in PACKAGES_SHOWN:
        try:
            rows.append((name, metadata.version(name)))
        except metadata.PackageNotFoundError:
            rows.append((name, "not installed"))
    return rows


def _spec_text(report: RunReport) -> str:
    """The resolved spec as YAML, each decided value with its reason beside it."""
    if report.resolved is None:
        return ""
    raw = report.resolved.spec.model_dump(mode="json")
    text = yaml.safe_dump(raw, sort_keys=False, width=100, allow_unicode=True)
    return _with_reasons(text, {reason.path: reason.reason for reason in report.resolved.reasons})


def _with_reasons(text: str, reasons: Mapping[str, str]) -> str:
    """Append `# reason` to the lines of decided keys (block YAML with two-space indents)."""
    lines: list[str] = []
    path: list[str] = []
    for line in text.splitlines():
        stripped = line.lstrip()
        depth = (len(line) - len(stripped)) // 2
        key = stripped.split(":", 1)[0]
        if not stripped.startswith("-") and ":" in stripped:
            path = [*path[:depth], key]
            reason = reasons.get(".".join(path))
            lines.append(f"{line}  # {reason}" if reason else line)
        else:
            lines.append(line)
    return "\n".join(lines)
