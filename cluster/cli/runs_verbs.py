"""`manta runs`, `manta show` and `manta diagnose`: what lies in the runs folder, and what it means."""

from __future__ import annotations

from datetime import datetime
from pathlib import Path
from typing import Annotated

import typer
from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

from cluster.cli.children import run_module
from cluster.cli.options import RUNS_DIR, AsJson, RunName, RunsDir
from cluster.command import emit_json
from cluster.entrypoints import COMMAND_MODULES
from cluster.pipeline.stages import STAGES

Apply = Annotated[
    Path | None, typer.Option("--apply", metavar="OUT.yaml", help="Write the run's spec with the remedies.")
]


def register(app: typer.Typer) -> None:
    """Add the verbs."""
    app.command()(runs)
    app.command()(show)
    app.command()(diagnose)


def runs(runs_dir: RunsDir = RUNS_DIR, as_json: AsJson = False) -> None:
    """List runs, newest first."""
    from cluster.cli.local_runs import describe
    from cluster.store.run_folder import list_runs
    from cluster.telemetry.view import format_metric

    rows = [describe(run) for run in list_runs(runs_dir)]
    if as_json:
        emit_json(rows)
        return
    if not rows:
        typer.echo(f"No runs in {runs_dir}. Start one with 'manta run configs/quickstart.yaml'.")
        return
    table = Table(box=box.SIMPLE_HEAD, header_style="bold")
    for column in ("run", "state", "stages", "accuracy", "started"):
        table.add_column(column)
    for row in rows:
        accuracy = row["metrics"].get("accuracy")
        table.add_row(
            row["run"],
            row["state"],
            f"{len(row['stages'])}/{len(STAGES)}",
            "" if accuracy is None else format_metric("accuracy", accuracy),
            datetime.fromtimestamp(row["started_unix_s"]).strftime("%Y-%m-%d %H:%M"),
        )
    Console().print(table)


def show(run: RunName, runs_dir: RunsDir = RUNS_DIR, as_json: AsJson = False) -> None:
    """Show one run: its stages, figures and files."""
    from cluster.cli.local_runs import describe
    from cluster.store.run_folder import find_run
    from cluster.telemetry.view import format_duration

    folder = find_run(runs_dir, run)
    facts = describe(folder)
    if as_json:
        emit_json(facts)
        return
    console = Console()
    console.print(Text.assemble((facts["run"], "bold"), f"  {facts['state']}  {facts['folder']}"), soft_wrap=True)
    table = Table(box=box.SIMPLE_HEAD, header_style="bold")
    for column in ("stage", "time", "result"):
        table.add_column(column)
    for name, stage in facts["stages"].items():
        table.add_row(name, format_duration(stage["duration_s"]), Text(stage["headline"]))
    console.print(table)
    if error := facts.get("error"):
        console.print(Text(error["message"], "red"), soft_wrap=True)
    for label in ("bundle", "report"):
        if facts[label]:
            console.print(Text(f"{label}: {facts[label]}"), soft_wrap=True)


def diagnose(run: RunName, apply: Apply = None, runs_dir: RunsDir = RUNS_DIR, as_json: AsJson = False) -> int:
    """Say in plain words what a run's training curves mean, and which values of its spec would help."""
    from cluster.store.run_folder import find_run

    folder = find_run(runs_dir, run)
    flags = [*(["--apply", str(apply)] if apply else []), *(["--json"] if as_json else [])]
    return run_module(COMMAND_MODULES["diagnose"], [str(folder.path), *flags])
