"""Options that several verbs share, in one place, so that they mean the same everywhere."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

RUNS_DIR = Path("runs")
OWNER_VARIABLE = "MANTA_OWNER"
"""Whose a run is, where one user runs the jobs of all."""

SpecPath = Annotated[Path, typer.Argument(metavar="SPEC", help="The YAML of the run.")]
Overrides = Annotated[
    list[str] | None,
    typer.Option("--set", metavar="PATH=VALUE", help="Override one value, e.g. train.epochs=3. May be repeated."),
]
RunsDir = Annotated[
    Path, typer.Option("--runs-dir", envvar="MANTA_RUNS_DIR", help="Folder that holds the runs.", file_okay=False)
]
RunName = Annotated[str, typer.Argument(metavar="RUN", help="Name of a run, or the path of its folder.")]
AsJson = Annotated[bool, typer.Option("--json", help="Print one JSON value on stdout, all else on stderr.")]
Address = Annotated[
    str | None,
    typer.Option("--address", envvar="RAY_ADDRESS", help="Ray cluster to use; a private local Ray when absent."),
]
JobsAddress = Annotated[
    str | None,
    typer.Option("--address", envvar="RAY_API_SERVER_ADDRESS", metavar="URL", help="Head's URL, http://HOST:8265."),
]
PRIORITY_MAX = 100
Priority = Annotated[
    int,
    typer.Option(
        "--priority",
        min=-PRIORITY_MAX,
        max=PRIORITY_MAX,
        help="On a cluster: of waiting runs, the largest trains first.",
    ),
]
RunOrJob = Annotated[str, typer.Argument(metavar="RUN|JOB", help="A run here, or with --address a job there.")]
Store = Annotated[str | None, typer.Option("--store", metavar="URL", help="Bundle store: a folder or s3://…, gs://….")]
