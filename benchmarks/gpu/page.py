"""result.json as a page for people: Markdown, one table of steps and one of findings for each."""

from __future__ import annotations

from typing import Any

SIGNS = {True: "yes", False: "**no**", None: ""}


def page_of(report: dict[str, Any]) -> str:
    """The page of a run, complete or not."""
    facts = report["steps"].get("device", {}).get("findings", {}).get("device", {})
    title = (
        "# A dry run on a CPU: says nothing about a GPU" if report["dry"] else f"# Proof on {facts.get('name', '?')}"
    )
    lines = [title, "", f"Started {report['started']}, {report['minutes']:g} minutes, by `{report['command']}`.", ""]
    lines += [f"* {name}: {_text(value)}" for name, value in facts.items()]
    lines += ["", "| step | question | outcome | seconds |", "| --- | --- | --- | --- |"]
    for name, step in report["steps"].items():
        outcome = step["status"] + (f": {_text(step['reason'])}" if step.get("reason") else "")
        lines.append(f"| {name} | {step['question']} | {outcome} | {_text(step.get('seconds', ''))} |")
    for name, step in report["steps"].items():
        if name != "device" and step["findings"]:
            lines += ["", f"## {name}", "", "| finding | as it should be | figures |", "| --- | --- | --- |"]
            lines += [_row(finding, facts) for finding, facts in step["findings"].items()]
        if step.get("output"):
            lines += ["", f"What {name} said last:", "", *[f"    {line}" for line in step["output"]]]
    return "\n".join(lines) + "\n"


def _row(name: str, facts: dict[str, Any]) -> str:
    figures = "; ".join(f"{key} {_text(value)}" for key, value in facts.items() if key not in ("ok", "skipped"))
    skipped = f"skipped: {facts['skipped']}" if "skipped" in facts else figures
    return f"| {name} | {SIGNS[facts.get('ok')]} | {_text(skipped)} |"


def _text(value: Any) -> str:
    if isinstance(value, float):
        return f"{value:.5g}"
    if isinstance(value, list | tuple):
        return ", ".join(_text(item) for item in value)
    if isinstance(value, dict):
        return ", ".join(f"{key} {_text(item)}" for key, item in value.items())
    return " ".join(str(value).split()).replace("|", "\\|")
