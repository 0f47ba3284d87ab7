"""`manta check`, `explain`, `schema`, `run`, `train`, `runs`, `show`, `diagnose`: a spec, its run, the runs there are.

What `run` does is in run_process.py, loaded when it runs.
"""

from __future__ import annotations

import os
from datetime import datetime
from pathlib import Path
from typing import Annotated, Any

import typer
from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

from cluster.cli.forward import ForwardedCommand, forward
from cluster.cli.options import (
    OWNER_VARIABLE,
    RUNS_DIR,
    Address,
    AsJson,
    Overrides,
    Priority,
    RunName,
    RunsDir,
    SpecPath,
    Store,
)
from cluster.command import emit_json
from cluster.entrypoints import COMMAND_MODULES
from cluster.pipeline.stages import STAGES

PANEL = "Runs"
STAGE_NAMES = ", ".join(stage.name for stage in STAGES)
Keep = Annotated[bool, typer.Option("--keep", help="Leave the endpoint running in the background.")]
Fresh = Annotated[bool, typer.Option("--fresh", help="Forget earlier results of this run and start anew.")]
Name = Annotated[str | None, typer.Option("--name", help="Name of the run; else the spec's, else the file's.")]
Profile = Annotated[
    int | None,
    typer.Option("--profile", min=1, metavar="N", help="Trace N updates with torch.profiler into RUN/traces."),
]
Until = Annotated[str | None, typer.Option("--until", metavar="STAGE", help=f"Stop after this stage: {STAGE_NAMES}.")]
Supervised = Annotated[
    bool,
    typer.Option("--supervised", help="End with the process that started this one; wait for an orphan to end first."),
]
Apply = Annotated[
    Path | None, typer.Option("--apply", metavar="OUT.yaml", help="Write the run's spec with the remedies.")
]


def register(app: typer.Typer) -> None:
    """Add the verbs."""
    app.command(rich_help_panel=PANEL)(check)
    app.command(rich_help_panel=PANEL, cls=ForwardedCommand)(explain)
    for verb in (schema, run, train, runs, show):
        app.command(rich_help_panel=PANEL)(verb)
    app.command(rich_help_panel=PANEL, cls=ForwardedCommand)(diagnose)


def check(spec: SpecPath, override: Overrides = None, as_json: AsJson = False) -> None:
    """Check all of a spec that needs no data, and print every problem at once."""
    from cluster.runtime.extras import check_extras
    from cluster.spec.rules import load_checked

    loaded = load_checked(spec, override or [])
    check_extras(loaded)
    if as_json:
        emit_json({"ok": True, "spec": loaded.model_dump(mode="json")})
    else:
        typer.echo(f"{spec} is a valid spec. 'manta explain {spec}' shows what it would do with your data.")


def explain(context: typer.Context, spec: SpecPath, override: Overrides = None, as_json: AsJson = False) -> int:
    """Print the resolved run: every auto with its reason, the batch equation, the learning-rate curve, memory."""
    from cluster.spec.rules import load_checked

    load_checked(spec, override or [])  # a wrong spec is refused without another process
    return forward(context, COMMAND_MODULES["explain"])


def schema() -> None:
    """Print the JSON Schema of a spec, for editors that complete YAML."""
    emit_json(spec_schema())


def spec_schema() -> dict[str, Any]:
    """JSON Schema (2020-12) of the YAML."""
    from cluster.spec.run import RunSpec

    return {"$schema": "https://json-schema.org/draft/2020-12/schema", **RunSpec.model_json_schema()}


def run(
    spec: SpecPath,
    override: Overrides = None,
    name: Name = None,
    runs_dir: RunsDir = RUNS_DIR,
    address: Address = None,
    until: Until = None,
    keep: Keep = False,
    fresh: Fresh = False,
    store: Store = None,
    supervised: Supervised = False,
    priority: Priority = 0,
    as_json: AsJson = False,
) -> int:
    """Take a spec from raw data to an answering endpoint; the same command resumes where it stopped."""
    from cluster.cli.run_process import ORPHAN_WAIT_S, Claim, WatchOptions, prepare_folder, start_driver, watch
    from cluster.pipeline.reuse import stages_until

    stages_until(until)
    claim = Claim(fresh, ORPHAN_WAIT_S if supervised else 0.0, os.environ.get(OWNER_VARIABLE) or None)
    folder = prepare_folder(spec, override or [], name=name, runs_dir=runs_dir, claim=claim)
    flags = [
        *(["--address", address] if address else []),
        *(["--until", until] if until else []),
        *(["--store", store] if store else []),
        *(["--keep"] if keep else []),
        *(["--priority", str(priority)] if priority else []),
    ]
    return watch(folder, start_driver(folder, flags), WatchOptions(keep, supervised, as_json))


def train(
    spec: SpecPath,
    override: Overrides = None,
    name: Name = None,
    runs_dir: RunsDir = RUNS_DIR,
    address: Address = None,
    fresh: Fresh = False,
    as_json: AsJson = False,
    profile: Profile = None,
) -> int:
    """Run until the model is trained: `manta run --until train`."""
    values = [*(override or []), *([f"train.profile_updates={profile}"] if profile else [])]
    return run(spec, values, name, runs_dir, address, "train", fresh=fresh, as_json=as_json)


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


def diagnose(
    context: typer.Context,
    run: RunName,
    apply: Apply = None,
    runs_dir: RunsDir = RUNS_DIR,
    as_json: AsJson = False,
) -> int:
    """Say in plain words what a run's training curves mean, and which values of its spec would help."""
    from cluster.store.run_folder import find_run

    find_run(runs_dir, run)  # an unknown run is refused without another process
    return forward(context, COMMAND_MODULES["diagnose"])
