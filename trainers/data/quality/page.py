"""The quality report as one self-contained HTML page: findings, a map of missing values, a picture of each column.

Invariant: no script and nothing from the network; every value of the data is escaped.

Covered: both engines' reports, light and dark. Not covered: printing.
"""

from __future__ import annotations

import html
import json
import math
from pathlib import Path
from typing import Any

from trainers.data.quality.findings import Finding
from trainers.data.quality.report import QualityReport

BAR, HEIGHT, CELL = 9, 36, 12
EVIDENCE_MAX = 160  # characters
STYLE = """
:root{--ink:#1c2430;--soft:#5d6b7c;--line:#dde3ea;--page:#fff;--bar:#3f6f9f;--hole:#b3341f;--warn:#8a5a00;--calm:#eef2f6}
@media(prefers-color-scheme:dark){:root{--ink:#e6ebf1;--soft:#9aa7b6;--line:#313b47;--page:#141a21;--bar:#7fb0e0;
--hole:#ff8068;--warn:#f0bd5a;--calm:#1f2832}}
body{font:15px/1.45 system-ui,sans-serif;color:var(--ink);background:var(--page);margin:2rem auto;max-width:76rem;
padding:0 1.2rem}
h1{font-size:1.5rem;margin:0}h2{font-size:1.1rem;margin:2rem 0 .6rem}p{color:var(--soft);margin:.3rem 0}
table{border-collapse:collapse;width:100%}td,th{padding:.35rem .7rem .35rem 0;text-align:left;vertical-align:top;
border-bottom:1px solid var(--line)}th{color:var(--soft);font-weight:500}
.wide{overflow-x:auto}.number{text-align:right;font-variant-numeric:tabular-nums;white-space:nowrap}
code{font:13px/1.4 ui-monospace,monospace;background:var(--calm);padding:.05rem .3rem;border-radius:3px;
overflow-wrap:anywhere}.name{font-weight:600;overflow-wrap:anywhere;min-width:6rem}.soft{color:var(--soft);font-size:13px}
.error{color:var(--hole);font-weight:600}.warning{color:var(--warn);font-weight:600}.info{color:var(--soft)}
svg{display:block}.bars{fill:var(--bar)}.empty{fill:var(--calm)}.holes{fill:var(--hole)}
"""


def to_html(report: QualityReport, name: str) -> str:
    """The page."""
    counts = {level: sum(item.severity == level for item in report.findings) for level in ("error", "warning", "info")}
    said = ", ".join(
        f"{count} {level}{'s' if count != 1 and level != 'info' else ''}" for level, count in counts.items()
    )
    found = "".join(_finding(item) for item in report.findings)
    head = "<tr><th>severity<th>rule<th>column<th>what<th>mend it with"
    findings = f"<div class=wide><table>{head}{found}</table></div>" if found else "<p>Nothing to say.</p>"
    columns = "".join(_column(column, facts) for column, facts in report.columns.items())
    return (
        f"<!doctype html><html lang=en><meta charset=utf-8><meta name=viewport content='width=device-width'>"
        f"<title>{html.escape(Path(name).name)}</title><style>{STYLE}</style><h1>{html.escape(Path(name).name)}</h1>"
        f"<p>{report.rows:,} rows, {len(report.columns)} columns; findings: {said}</p>"
        f"<h2>Findings</h2>{findings}{_missing_map(report)}"
        f"<h2>Columns</h2><div class=wide><table><tr><th>column<th>kind<th class=number>different"
        f"<th class=number>missing<th>values<th>{columns}</table></div></html>\n"
    )


def _finding(item: Finding) -> str:
    evidence = json.dumps(_rounded(item.evidence), ensure_ascii=False, default=str)
    evidence = evidence if len(evidence) <= EVIDENCE_MAX else evidence[: EVIDENCE_MAX - 1] + "…"
    shown = f"<div class=soft>{html.escape(evidence)}</div>" if item.evidence else ""
    return (
        f"<tr><td class={item.severity}>{item.severity}<td>{item.rule}<td class=name>{html.escape(item.column)}"
        f"<td>{html.escape(item.text)}{shown}<td><code>{html.escape(item.fix)}</code>"
    )


def _rounded(value: Any) -> Any:
    """Evidence for people: floats with four digits."""
    if isinstance(value, float):
        return float(f"{value:.4g}") if math.isfinite(value) else str(value)
    if isinstance(value, dict):
        return {key: _rounded(each) for key, each in value.items()}
    return [_rounded(each) for each in value] if isinstance(value, list | tuple) else value


def _missing_map(report: QualityReport) -> str:
    """One strip a column that has holes: its rows from first to last, darker where more values are missing."""
    holed = {name: facts for name, facts in report.columns.items() if facts["missing"]}
    if not holed:
        return "<h2>Missing values</h2><p>None.</p>"
    strips = "".join(
        f"<tr><td class=name>{html.escape(name)}<td class=number>{facts['missing_share']:.1%}"
        f"<td>{_strip(facts.get('missing_map', []))}"
        for name, facts in sorted(holed.items(), key=lambda item: -item[1]["missing_share"])
    )
    return (
        "<h2>Missing values</h2><p>Each strip runs from the first row to the last; the darker, the more is missing.</p>"
        f"<div class=wide><table>{strips}</table></div>"
    )


def _strip(shares: list[float]) -> str:
    cells = "".join(
        f'<rect class=holes x="{at * CELL}" width="{CELL}" height="14" opacity="{share:.2f}"/>'
        for at, share in enumerate(shares)
        if share > 0
    )
    width = CELL * max(len(shares), 1)
    return f'<svg width="{width}" height="14"><rect class=empty width="{width}" height="14"/>{cells}</svg>'


def _column(name: str, facts: dict[str, Any]) -> str:
    return (
        f"<tr><td class=name>{html.escape(name)}<td>{facts['kind']}<td class=number>{facts['different']:,}"
        f"<td class=number>{facts['missing_share']:.1%}<td>{_picture(facts)}<td class=soft>{_words(facts)}"
    )


def _picture(facts: dict[str, Any]) -> str:
    """The histogram of numbers, or the rows of the most frequent words."""
    counts = facts.get("histogram", {}).get("counts") or list(facts.get("most_frequent", {}).values())
    top = max(counts, default=0) or 1
    bars = "".join(
        f'<rect x="{at * BAR}" y="{HEIGHT * (1 - count / top):.1f}" width="{BAR - 1}" '
        f'height="{HEIGHT * count / top:.1f}"><title>{count:,}</title></rect>'
        for at, count in enumerate(counts)
    )
    return f'<svg class=bars width="{max(20, len(counts)) * BAR}" height="{HEIGHT}">{bars}</svg>'


def _words(facts: dict[str, Any]) -> str:
    if "median" in facts:
        quantiles = " · ".join(f"{facts[key]:.4g}" for key in ("min", "q25", "median", "q75", "max"))
        outliers = f"; {facts['outliers']:,} outliers" if facts["outliers"] else ""
        return f"{quantiles}<br>mean {facts['mean']:.4g}{outliers}"
    shown = [
        html.escape(word if len(word) <= 24 else word[:23] + "…") for word in list(facts.get("most_frequent", {}))[:4]
    ]
    return ", ".join(shown) + (", …" if facts["different"] > len(shown) else "")
