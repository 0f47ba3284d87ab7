"""The command line's way through typer: its usage errors and exits join those of the commands (telemetry/edge.py)."""

from __future__ import annotations

import os
import sys
from typing import NoReturn

import typer
from typer.exceptions import TyperException

from cluster.errors import RequestError
from cluster.telemetry.edge import DEBUG_VARIABLE, forgive_characters, run_command
from cluster.telemetry.log import setup_logging

DEBUG_FLAG = "--debug"
JSON_FLAG = "--json"


def run_app(app: typer.Typer) -> NoReturn:
    """Run the command line and exit. `--debug` may stand anywhere."""
    arguments = [item for item in sys.argv[1:] if item != DEBUG_FLAG]
    if len(arguments) != len(sys.argv) - 1:
        os.environ[DEBUG_VARIABLE] = "1"  # for this process and those that it starts
    forgive_characters()
    setup_logging()
    sys.exit(call(app, arguments))


def call(app: typer.Typer, arguments: list[str]) -> int:
    """Run with arguments and return the exit code; errors are printed to stderr (and as JSON to stdout)."""
    return run_command(lambda: _call(app, arguments), as_json=JSON_FLAG in arguments)


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
