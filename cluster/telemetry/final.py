"""The table at the end of a run, from `run_finished.summary` alone: figures, where things lie, what to try next."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from cluster.telemetry.view import format_bytes, format_duration, format_metric, format_value

METRICS_SHOWN = ("accuracy", "balanced_accuracy", "f1", "loss", "mae", "rmse", "r2")


def final_rows(summary: Mapping[str, Any], duration_s: float | None = None) -> list[tuple[str, str]]:
    """(what, figure) pairs; what the run did not get to is left out."""
    rows: list[tuple[str, str]] = []
    metrics = summary.get("metrics") or {}
    for name in [name for name in METRICS_SHOWN if name in metrics]:
        beside = "" if rows else baseline_note(name, summary.get("baseline"), short=True)
        rows.append(
            (f"test {name.replace('_', ' ')}", format_metric(name, metrics[name]) + (beside and f" ({beside})"))
        )
    rows += _model_rows(summary)
    rows += _endpoint_rows(summary)
    if summary.get("bundle"):
        rows.append(("bundle", str(summary["bundle"])))
    if summary.get("report"):
        rows.append(("report", str(summary["report"])))
    if duration_s is not None:
        rows.append(("took", format_duration(duration_s)))
    return rows


def baselines_of(found: Mapping[str, Any] | None) -> list[dict[str, Any]]:
    """`{"name", "metrics"}` of what the evaluate stage measured beside the network, the stronger first."""
    model, constant = (found or {}).get("model"), (found or {}).get("constant")
    rows = [{"name": model["name"], "metrics": model["metrics"]}] if model else []
    if constant:
        answer = constant["answer"]
        said = f"always “{answer}”" if isinstance(answer, str) else "the mean"
        rows.append({"name": said, "metrics": constant["metrics"]})
    return rows


def baseline_note(name: str, found: Mapping[str, Any] | None, *, short: bool = False) -> str:
    """`baseline: boosted trees 87.05 %, always “<=50K” 76.38 %`; `short`: the strongest alone. Empty without one."""
    rows = [row for row in baselines_of(found)[: 1 if short else None] if name in row["metrics"]]
    shown = [f"{row['name']} {format_metric(name, row['metrics'][name])}" for row in rows]
    return f"baseline: {', '.join(shown)}" if shown else ""


def final_commands(summary: Mapping[str, Any]) -> list[tuple[str, str]]:
    """(purpose, command line) pairs to try next."""
    endpoint = summary.get("endpoint") or {}
    steps = [("ask it", "curl"), ("stop it", "stop")]
    if endpoint and not endpoint.get("kept"):  # it was stopped at the end of the run
        steps = [("serve it again", "serve"), ("ask it", "curl")]
    return [(what, str(endpoint[key])) for what, key in steps if endpoint.get(key)]


def final_lines(summary: Mapping[str, Any], duration_s: float | None = None) -> list[str]:
    """The table as plain text."""
    rows = [*final_rows(summary, duration_s), *final_commands(summary)]
    width = max((len(name) for name, _ in rows), default=0)
    return [f"{name:<{width}}  {value}" for name, value in rows]


def _model_rows(summary: Mapping[str, Any]) -> list[tuple[str, str]]:
    before, after = summary.get("size_before_bytes"), summary.get("size_after_bytes")
    if after is None:
        return []
    if before is None or before == after:
        return [("model size", f"{format_bytes(after)} ({summary.get('variant', '')})")]
    return [
        (
            "model size",
            f"{format_bytes(before)} → {format_bytes(after)} ({summary.get('variant')}, {before / after:.1f}×)",
        )
    ]


def _endpoint_rows(summary: Mapping[str, Any]) -> list[tuple[str, str]]:
    rows = []
    check, latency = summary.get("endpoint_check") or {}, summary.get("latency") or {}
    if "rows" in check:
        right = f", {format_metric('accuracy', check['accuracy'])} right" if "accuracy" in check else ""
        rows.append(("endpoint answered", f"{check['rows']} real test rows over HTTP{right}"))
    quantiles = [(name, latency.get(f"latency_ms_{name}")) for name in ("p50", "p99")]
    known = [f"{name} {format_value(round(float(value), 2))} ms" for name, value in quantiles if value is not None]
    if known:
        rows.append(("latency", " · ".join(known)))
    if summary.get("endpoint", {}).get("kept"):
        rows.append(("endpoint", str(summary["endpoint"].get("url", ""))))
    return rows
