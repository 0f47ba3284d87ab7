"""How every command starts and ends, `manta` and what it starts: one sentence, one JSON value, one exit code.

Exit codes: 0 done; 2 the request is wrong; 3 resources are missing; 1 anything else, Ctrl-C and a closed pipe too.

Invariant: whatever a command raises, stderr has one sentence of it (a traceback with --debug) and, with --json, stdout
has one JSON value. A stdout or stderr that nobody reads adds neither a word nor another error.

Covered: errors of ours, of the file system, Ctrl-C, closed and full streams, anything else.
Not covered: arguments that argparse refuses (its usage on stderr, exit code 2).
"""

from __future__ import annotations

import errno
import json
import os
import sys
import traceback
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from cluster.errors import DiskFullError, MantaError, RequestError, ResourceError

DEBUG_FLAG = "--debug"
JSON_FLAG = "--json"
DEBUG_VARIABLE = "MANTA_DEBUG"  # set by --debug for this process and those that it starts
FULL = (errno.ENOSPC, errno.EDQUOT)
REFUSED = (errno.EACCES, errno.EPERM, errno.EROFS)
MISNAMED = (errno.ENOTDIR, errno.EISDIR, errno.ENAMETOOLONG, errno.ELOOP, errno.EEXIST)


def run_main(command: Callable[[list[str]], int], arguments: Sequence[str] | None = None) -> int:
    """Call a command with its arguments (else the process's) and return the exit code; what it raises is printed.

    `--debug` may stand anywhere and is taken out of the arguments.
    """
    given = list(sys.argv[1:] if arguments is None else arguments)
    if DEBUG_FLAG in given:
        os.environ[DEBUG_VARIABLE] = "1"
        given = [word for word in given if word != DEBUG_FLAG]
    as_json = JSON_FLAG in given
    _prepare_streams()
    try:
        code = command(given)
        sys.stdout.flush()  # here a closed pipe can be handled; at the end of the process Python would print it
        return code
    except MantaError as error:
        return print_error(error, as_json=as_json)
    except KeyboardInterrupt:
        write_line("Stopped.")
        return 1
    except BrokenPipeError:  # nobody reads on: `manta … | head -1`
        return 1
    except Exception as error:  # noqa: BLE001 - the end of a command: there is no caller to raise it to
        return print_error(_as_ours(error), as_json=as_json)
    finally:
        _discard_broken_streams()


def print_error(error: MantaError, *, as_json: bool) -> int:
    """One error for a person, and for a program; returns its exit code."""
    if os.environ.get(DEBUG_VARIABLE):
        write_line("".join(traceback.format_exception(error)).rstrip("\n"))
    if as_json:
        with suppress(OSError):  # of a stdout that is closed or full
            emit_json({"ok": False, "error": error.to_dict()})
    write_line(f"Error: {error.message}")
    return error.exit_code


def emit_json(value: dict[str, Any] | list[Any]) -> None:
    """The one JSON value that `--json` prints on stdout."""
    sys.stdout.write(json.dumps(value, indent=2, default=str) + "\n")
    sys.stdout.flush()


def write_line(text: str) -> None:
    """A line on stderr, which may be closed."""
    with suppress(OSError):
        sys.stderr.write(text + "\n")


def _prepare_streams() -> None:
    """A terminal shows `?` for a character that it does not have; what goes to a stream that is not open is lost."""
    if sys.stdout is None:  # started with `>&-`
        sys.stdout = Path(os.devnull).open("w")  # noqa: SIM115 - open as long as the process
    if sys.stderr is None:
        sys.stderr = Path(os.devnull).open("w")  # noqa: SIM115
    for stream in (sys.stdout, sys.stderr):
        if reconfigure := getattr(stream, "reconfigure", None):
            reconfigure(errors="replace")


def _discard_broken_streams() -> None:
    """What stdout and stderr still hold goes to /dev/null where they cannot be written to."""
    for stream in (sys.stdout, sys.stderr):
        try:
            stream.flush()
        except OSError:
            nowhere = os.open(os.devnull, os.O_WRONLY)
            os.dup2(nowhere, stream.fileno())
            os.close(nowhere)


def _as_ours(error: Exception) -> MantaError:
    """An error of the file system as the user's or the place's, anything else as a fault of Manta."""
    ours = _of_file_system(error) if isinstance(error, OSError) else None
    if ours is None:
        found = f"{type(error).__name__}: {error}"
        ours = MantaError("Manta failed", found=found, remedy="This is a fault of Manta; --debug shows where.")
    ours.__cause__ = error
    return ours


def _of_file_system(error: OSError) -> MantaError | None:
    found = (error.strerror or str(error)).lower()
    attempted = "Cannot write" if error.filename is None else f"Cannot use {error.filename}"
    if error.errno in FULL:  # of a write, which knows no name
        return DiskFullError(attempted, found=found, remedy="Free some space, or name another place.")
    if error.filename is None:
        return None
    if error.errno in REFUSED:
        return ResourceError(attempted, found=found, remedy="Give this user the right to it, or name another place.")
    return RequestError(attempted, found=found, remedy="Name another place.") if error.errno in MISNAMED else None
