"""The quality report as one self-contained HTML page: findings, a map of missing values, a picture of each column.

Invariant: no script and nothing from the network; every value of the data is escaped.

Covered: both engines' reports, light and dark. Not covered: printing.
"""

from __future__ import annotations

import html
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from cluster.telemetry.view import format_value
from trainers.data.quality.findings import Finding
from trainers.data.quality.report import QualityReport

BAR, HEIGHT, CELL = 9, 36, 12
EVIDENCE_ITEMS_MAX = 5  # of one list; how many more there are is said
WORD_CHARACTERS_MAX = 60  # of one value of the data
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
overflow-wrap:break-word}.name{font-weight:600;min-width:6rem}.soft{color:var(--soft);font-size:13px}
.fit{width:max-content;max-width:min(22rem,70vw);overflow-wrap:break-word}.what{min-width:16rem}
.error{color:var(--hole);font-weight:600}.warning{color:var(--warn);font-weight:600}.info{color:var(--soft)}
td.soft{min-width:10rem}svg{display:block}.bars{fill:var(--bar)}.empty{fill:var(--calm)}.holes{fill:var(--hole)}
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
    short = [name for name, value in item.evidence.items() if isinstance(value, int | float | str)]
    lines = [" · ".join(_line(name, item.evidence[name]) for name in short)] if short else []
    lines += [_line(name, value) for name, value in item.evidence.items() if name not in short]
    shown = "".join(f"<div class=soft>{html.escape(line)}</div>" for line in lines)
    return (
        f"<tr><td class={item.severity}>{item.severity}<td>{item.rule}<td class=name>{_name(item.column)}"
        f"<td class=what>{html.escape(item.text)}{shown}<td><div class=fit><code>{html.escape(item.fix)}</code></div>"
    )


def _name(name: str) -> str:
    """A column's name: it breaks between its words, and inside one only where that one is wider than the cell."""
    return f"<div class=fit>{_breakable(name)}</div>"


def _breakable(text: str) -> str:
    """Escaped, with a place to break after each mark that parts words (`_`, `.`, `-`, `/`, `:`, a change of case)."""
    parts = re.split(r"(?<=[_./:,-])(?=\w)|(?<=[a-z])(?=[A-Z])", text)
    return "<wbr>".join(html.escape(part) for part in parts)


def _line(name: str, value: Any) -> str:
    return f"{name.replace('_', ' ')}: {_plain(value)}"


def _plain(value: Any) -> str:
    """Evidence as a reader would write it: numbers with their digits, lists with commas, `old → new` of a map."""
    if isinstance(value, Mapping):
        return _pairs(value, " → " if all(isinstance(each, str) for each in value.values()) else " ")
    if isinstance(value, list | tuple):
        nested = any(isinstance(each, Mapping | list | tuple) for each in value)
        shown = [_pairs(each, " ") if isinstance(each, Mapping) else _plain(each) for each in value]
        return _listed(shown, "; " if nested else ", ")
    return _word(format_value(value))


def _pairs(value: Mapping[Any, Any], between: str) -> str:
    """`a 1, b 2`; of several columns' facts `age: count 3, fences -2 / 78; height: count 1`."""
    if value and all(isinstance(each, Mapping) for each in value.values()):
        return _listed([f"{_word(key)}: {_pairs(each, ' ')}" for key, each in value.items()], "; ")
    parts = {key: _listed([_plain(one) for one in each], " / ") if isinstance(each, list | tuple) else _plain(each)
             for key, each in value.items()}  # fmt: skip
    return _listed([f"{_word(key)}{between}{part}" for key, part in parts.items()], ", ")


def _listed(parts: list[str], between: str) -> str:
    more = len(parts) - EVIDENCE_ITEMS_MAX
    return between.join(parts[:EVIDENCE_ITEMS_MAX]) + (f" and {more:,} more" if more > 0 else "")


def _word(value: Any) -> str:
    """A text of the data, cut where it is long; an empty one can be seen."""
    text = str(value)
    if not text.strip():
        return f"“{text}”"
    return text if len(text) <= WORD_CHARACTERS_MAX else text[: WORD_CHARACTERS_MAX - 1] + "…"


def _missing_map(report: QualityReport) -> str:
    """One strip a column that has holes: its rows from first to last, darker where more values are missing."""
    holed = {name: facts for name, facts in report.columns.items() if facts["missing"]}
    if not holed:
        return "<h2>Missing values</h2><p>None.</p>"
    strips = "".join(
        f"<tr><td class=name>{_name(name)}<td class=number>{facts['missing_share']:.1%}"
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
        f"<tr><td class=name>{_name(name)}<td>{facts['kind']}<td class=number>{facts['different']:,}"
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
        quantiles = " · ".join(format_value(float(facts[key])) for key in ("min", "q25", "median", "q75", "max"))
        outliers = f"; {facts['outliers']:,} outliers" if facts["outliers"] else ""
        return f"{quantiles}<br>mean {format_value(float(facts['mean']))}{outliers}"
    shown = [
        html.escape(word if len(word) <= 24 else word[:23] + "…") for word in list(facts.get("most_frequent", {}))[:4]
    ]
    return ", ".join(shown) + (", …" if facts["different"] > len(shown) else "")
