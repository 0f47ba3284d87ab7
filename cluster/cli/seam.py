"""The edge of the command line: errors become one clear text and an exit code; a traceback only with --debug.

Exit codes: 0 done; 2 the request is wrong; 3 resources are missing; 1 anything else.
"""

from __future__ import annotations

import json
import os
import sys
import traceback
from typing import Any, NoReturn

import typer
from typer.exceptions import TyperException

from cluster.errors import MantaError
from cluster.telemetry.log import setup_logging

DEBUG_FLAG = "--debug"
JSON_FLAG = "--json"


def run_app(app: typer.Typer) -> NoReturn:
    """Run the command line and exit. `--debug` may stand anywhere."""
    arguments = [item for item in sys.argv[1:] if item != DEBUG_FLAG]
    debug = len(arguments) != len(sys.argv) - 1
    setup_logging()
    sys.exit(call(app, arguments, debug=debug))


def call(app: typer.Typer, arguments: list[str], *, debug: bool = False) -> int:
    """Run with arguments and return the exit code; errors are printed to stderr (or as JSON to stdout)."""
    try:
        result = typer.main.get_command(app)(args=arguments, prog_name="manta", standalone_mode=False)
        return int(result) if isinstance(result, int) else 0
    except MantaError as error:
        print_error(error, as_json=JSON_FLAG in arguments, debug=debug)
        return error.exit_code
    except TyperException as error:
        if message := error.format_message():  # empty: no arguments at all, and the help has been printed
            _say(f"Error: {message} 'manta --help' lists the verbs, 'manta VERB --help' its options.")
        return 2
    except (typer.Abort, KeyboardInterrupt):
        _say("Stopped.")
        return 1
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # a closed pager is not an error
        return 1
    except Exception as error:  # noqa: BLE001 - the command line's seam
        if debug:
            traceback.print_exc()
        else:
            _say(f"Manta failed: {type(error).__name__}: {error}\nThis is a fault of Manta; --debug shows where.")
        return 1


def print_error(error: MantaError, *, as_json: bool, debug: bool) -> None:
    """One error for a person, or for a program."""
    if debug:
        traceback.print_exception(error)
    if as_json:
        emit_json({"ok": False, "error": error.to_dict()})
    _say(f"Error: {error.message}")


def emit_json(value: dict[str, Any] | list[Any]) -> None:
    """The one JSON value that `--json` prints on stdout."""
    sys.stdout.write(json.dumps(value, indent=2, default=str) + "\n")
    sys.stdout.flush()


def _say(text: str) -> None:
    sys.stderr.write(text + "\n")
