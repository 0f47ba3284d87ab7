"""`report.html`: a run as one self-contained page, drawn from its events and records alone."""

from __future__ import annotations

from pathlib import Path

from cluster.store.run_folder import RunFolder
from cluster.telemetry.events import Record

__all__ = ["write_report"]


def write_report(run: RunFolder, last: Record | None = None) -> Path:
    """Write `report.html` for a run in any state: finished, failed, interrupted. Returns its path.

    `last` is a record that the caller emits right after (`run_finished`, which promises the report).
    """
    from cluster.report.page import render_report  # Jinja2 and matplotlib are loaded when a report is made

    return render_report(run, last)
