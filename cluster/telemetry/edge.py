"""The edge of every command, of `manta` and of what it starts: one clear text, one JSON value, one exit code.

Exit codes: 0 done; 2 the request is wrong; 3 resources are missing; 1 anything else.

Invariant: whatever a command raises, stderr has one sentence of it (a traceback with --debug) and, with --json, stdout
has one JSON value.

Covered: errors of ours, of the file system, Ctrl-C, a closed pipe, anything else. Not covered: parsing arguments.
"""

from __future__ import annotations

import errno
import json
import os
import sys
import traceback
from collections.abc import Callable
from typing import Any, TextIO

from cluster.errors import DiskFullError, MantaError, RequestError, ResourceError

DEBUG_VARIABLE = "MANTA_DEBUG"  # set by `manta --debug` for the processes that it starts
FULL = (errno.ENOSPC, errno.EDQUOT)
REFUSED = (errno.EACCES, errno.EPERM, errno.EROFS)
MISNAMED = (errno.ENOTDIR, errno.EISDIR, errno.ENAMETOOLONG, errno.ELOOP, errno.EEXIST)


def run_command(command: Callable[[], int], *, as_json: bool = False) -> int:
    """Call a command and return its exit code; what it raises is printed."""
    try:
        return command()
    except MantaError as error:
        return print_error(error, as_json=as_json)
    except KeyboardInterrupt:
        say("Stopped.")
        return 1
    except BrokenPipeError:
        close_quietly(sys.stdout)
        return 1
    except Exception as error:  # noqa: BLE001 - the edge of a command: nobody above could say it better
        return print_error(_as_ours(error), as_json=as_json)


def print_error(error: MantaError, *, as_json: bool) -> int:
    """One error for a person, and for a program; returns its exit code."""
    if os.environ.get(DEBUG_VARIABLE):
        traceback.print_exception(error)
    if as_json:
        emit_json({"ok": False, "error": error.to_dict()})
    say(f"Error: {error.message}")
    return error.exit_code


def emit_json(value: dict[str, Any] | list[Any]) -> None:
    """The one JSON value that `--json` prints on stdout."""
    sys.stdout.write(json.dumps(value, indent=2, default=str) + "\n")
    sys.stdout.flush()


def say(text: str) -> None:
    """A line on stderr, if anybody listens there."""
    try:
        sys.stderr.write(text + "\n")
    except BrokenPipeError:
        close_quietly(sys.stderr)


def forgive_characters() -> None:
    """On a terminal that cannot show a character a `?` stands for it: an arrow in a table is no reason to fail."""
    for stream in (sys.stdout, sys.stderr):
        if reconfigure := getattr(stream, "reconfigure", None):
            reconfigure(errors="replace")


def close_quietly(stream: TextIO) -> None:
    """What is still written to a closed pipe goes nowhere: a pager that was closed is not an error."""
    nowhere = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, stream.fileno())
    os.close(nowhere)


def _as_ours(error: Exception) -> MantaError:
    """An error of the file system as the user's or the place's, anything else as a fault of Manta."""
    if not isinstance(error, OSError) or error.filename is None or error.errno not in (*FULL, *REFUSED, *MISNAMED):
        ours = MantaError(
            "Manta failed",
            found=f"{type(error).__name__}: {error}",
            remedy="This is a fault of Manta; --debug shows where.",
        )
    else:
        kind: type[MantaError] = RequestError
        remedy = "Name another place."
        if error.errno in FULL:
            kind, remedy = DiskFullError, "Free some space, or name another place."
        elif error.errno in REFUSED:
            kind, remedy = ResourceError, "Give this user the right to it, or name another place."
        ours = kind(f"Cannot use {error.filename}", found=(error.strerror or str(error)).lower(), remedy=remedy)
    ours.__cause__ = error
    return ours
