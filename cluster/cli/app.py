"""The `manta` command: registers the verbs, sets up logging, turns errors into sentences and exit codes.

Invariant: importing this loads typer and rich, and of the floor only what declares options. Torch, ray, NumPy (40 ms),
pydantic with the spec's models (170 ms), bundles (120 ms) and psutil (20 ms) are imported inside the verbs, so that
`manta --help` answers in a quarter of a second.
"""

from __future__ import annotations

from importlib.metadata import PackageNotFoundError, version
from platform import python_version
from typing import Annotated

import typer

from cluster.cli import (
    bundle_verbs,
    cluster_verbs,
    compress_verb,
    data_verbs,
    endpoints,
    probe,
    run_verbs,
    runs_verbs,
    spec_verbs,
)
from cluster.cli.seam import run_app

app = typer.Typer(
    name="manta",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
VERBS = (spec_verbs, data_verbs, run_verbs, runs_verbs, bundle_verbs, compress_verb, endpoints, cluster_verbs, probe)
for verbs in VERBS:
    verbs.register(app)

PACKAGE = "manta-ml"
SHOWN_WITH = ("ray", "torch", "onnxruntime", "tensorrt")


def version_line() -> str:
    """Manta's version with those of Python and of the packages that decide what it can do; reads metadata alone."""
    found = [f"Python {python_version()}"]
    for name in SHOWN_WITH:
        try:
            found.append(f"{name} {version(name)}")
        except PackageNotFoundError:
            continue
    return f"manta {version(PACKAGE)} ({', '.join(found)})"


def _show_version(asked: bool) -> None:
    if asked:
        typer.echo(version_line())
        raise typer.Exit


@app.callback()
def _options(
    show_version: Annotated[
        bool, typer.Option("--version", is_eager=True, callback=_show_version, help="Print versions and exit.")
    ] = False,
) -> None:
    """From a dataset and a PyTorch model to an autoscaled endpoint, on a Ray cluster, by one YAML."""


def run() -> None:
    """Console entry point."""
    run_app(app)
