"""`manta endpoints NAME --history`: each version with its state, and each change: who, when, why."""

from __future__ import annotations

import sys
import time

from cluster.command import emit_json
from serve.rollout import By, Rollout


def show_history(found: Rollout, *, as_json: bool) -> None:
    """Print it, for a person or a program."""
    if as_json:
        emit_json({"ok": True, **found.model_dump(mode="json", exclude={"config"})})
        return
    lines = [f"{'VERSION':<8} {'STATE':<10} {'SINCE':<20} {'BY':<24} BUNDLE, REASON"]
    for each in found.versions:
        what = _with_reason(each.bundle, each.by)
        lines.append(f"{each.version:<8} {each.state:<10} {_when(each.by):<20} {each.by.author:<24} {what}")
    lines.append("")
    for change in found.changes:
        what = _with_reason(change.by.author, change.by)
        lines.append(f"{_when(change.by)}  version {change.version} {change.state}, {what}")
    sys.stdout.write("\n".join(lines) + "\n")


def _when(by: By) -> str:
    return time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(by.unix_s))


def _with_reason(text: str, by: By) -> str:
    return f"{text}: {by.reason}" if by.reason else text
