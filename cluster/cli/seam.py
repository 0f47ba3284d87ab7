"""The command line's way through typer: its usage errors and exits join those of the commands (cluster/command.py)."""

from __future__ import annotations

import sys
from functools import partial
from typing import NoReturn

import typer
from typer.exceptions import TyperException

from cluster.command import run_main
from cluster.errors import RequestError
from cluster.telemetry.log import setup_logging


def run_app(app: typer.Typer) -> NoReturn:
    """Run the command line and exit."""
    setup_logging()
    sys.exit(call(app, sys.argv[1:]))


def call(app: typer.Typer, arguments: list[str]) -> int:
    """Run with arguments and return the exit code; errors are printed to stderr (and as JSON to stdout)."""
    return run_main(partial(_call, app), arguments)


def _call(app: typer.Typer, arguments: list[str]) -> int:
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
