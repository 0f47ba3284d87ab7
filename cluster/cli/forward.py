"""Verbs whose work a room does: declared and checked here, carried out by `python -m MODULE …`, which this starts.

An option of such a verb is declared once, as a parameter of the verb's function. `manta VERB WORDS` parses the words by
it, and hands the same words to the room's process, which parses them by the same function (`parse`).

Invariant: the floor never imports a room: it starts one by its module's name, from the table of entry points.
"""

from __future__ import annotations

import functools
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Sequence
from types import SimpleNamespace
from typing import Any

import typer
from typer.core import TyperCommand
from typer.exceptions import TyperException

from cluster.runtime.environment import with_ray_environment

WORDS = "cluster.cli.forward.words"
INTERRUPTED = 130  # what typer makes of Ctrl-C
HELP_FLAGS = {"help_option_names": ["-h", "--help"]}


class ForwardedCommand(TyperCommand):
    """A command that keeps its words as they were typed, for `forward`."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        ctx.meta[WORDS] = tuple(args)
        return super().parse_args(ctx, args)


def forward(context: typer.Context, module: str, *first: str) -> int:
    """Have `python -m module` do the work of the verb that runs now: `first` and the verb's own words. Blocks."""
    return run_module(module, [*first, *context.meta[WORDS]])


def parse(words: Sequence[str], *verbs: Callable[..., int], module: str) -> SimpleNamespace:
    """The options of one verb from a room's command line; of several verbs the first word names one (`command`).

    Raises SystemExit with code 2 for words that the verb does not take, as argparse does.
    """
    app = typer.Typer(add_completion=False, pretty_exceptions_enable=False, context_settings=HELP_FLAGS)
    for verb in verbs:
        app.command()(_returning_options(verb))
    command = typer.main.get_command(app)
    try:
        options = command(args=list(words), prog_name=f"python -m {module}", standalone_mode=False)
    except TyperException as error:
        sys.stderr.write(f"Error: {error.format_message()}\n")
        raise SystemExit(2) from None
    if options == INTERRUPTED:
        raise KeyboardInterrupt
    if not isinstance(options, SimpleNamespace):  # --help has been printed
        raise SystemExit(options or 0)
    return options


def _returning_options(verb: Callable[..., int]) -> Callable[..., SimpleNamespace]:
    @functools.wraps(verb)
    def options(**values: Any) -> SimpleNamespace:
        return SimpleNamespace(command=verb.__name__, **values)

    return options


def run_module(module: str, arguments: Sequence[str]) -> int:
    """Run `python -m module …` on this terminal and return its exit code. Blocks."""
    command = [sys.executable, "-m", module, *arguments]
    process = subprocess.Popen(command, env=with_ray_environment(dict(os.environ)))
    # a terminal sends SIGINT to both; SIGTERM reaches this process alone, and must not leave an orphan
    before = signal.signal(signal.SIGTERM, lambda number, _: process.send_signal(number))
    try:
        while True:
            try:
                return process.wait()
            except KeyboardInterrupt:
                continue  # the child has the same signal: it ends by itself
    finally:
        signal.signal(signal.SIGTERM, before)
