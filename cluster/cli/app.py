"""The `manta` command: registers the verbs of each panel, sets up logging, turns errors into sentences and exit codes.

A file beside this one holds the verbs of one panel of `manta --help`. typer's usage errors and exits join those of the
commands (cluster/command.py).

Invariant: importing this loads typer and rich, and of the floor only what declares options. Torch, ray, NumPy (40 ms),
pydantic with the spec's models (170 ms), bundles (120 ms) and psutil (20 ms) are imported inside the verbs, so that
`manta --help` answers in a quarter of a second.
"""

from __future__ import annotations

import sys
from importlib.metadata import PackageNotFoundError, version
from platform import python_version
from typing import Annotated, NoReturn

import typer
from typer.exceptions import TyperException

from cluster.cli import bundles, cluster, data, runs, serving
from cluster.cli.forward import HELP_FLAGS
from cluster.command import run_main
from cluster.errors import RequestError
from cluster.telemetry.log import setup_logging

app = typer.Typer(
    name="manta",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    context_settings=HELP_FLAGS,
)
for panel in (runs, cluster, serving, data, bundles):
    panel.register(app)

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


def run() -> NoReturn:
    """Console entry point."""
    setup_logging()
    sys.exit(call(sys.argv[1:]))


def call(arguments: list[str]) -> int:
    """Run with arguments and return the exit code; errors are printed to stderr (and as JSON to stdout)."""
    return run_main(_call, arguments)


def _call(arguments: list[str]) -> int:
    """Raises RequestError for arguments that typer refuses."""
    try:
        result = typer.main.get_command(app)(args=arguments, prog_name="manta", standalone_mode=False)
    except TyperException as error:
        message = error.format_message()
        if not message:  # no arguments at all: the help has been printed
            return 2
        raise RequestError(
            "Cannot read the command line",
            found=message,
            remedy="'manta --help' lists the verbs, 'manta VERB --help' its options.",
        ) from None
    except typer.Abort:
        raise KeyboardInterrupt from None
    return int(result) if isinstance(result, int) else 0
