"""`python -m serve.deployments COMMAND`: what `manta deploy`, `endpoints`, `predict`, `undeploy`, `rollback` start."""

from __future__ import annotations

import sys
import warnings
from types import SimpleNamespace

from cluster.cli.forward import parse as parse_words
from cluster.cli.serving import deploy, endpoints, predict, promote, rollback, undeploy
from cluster.command import run_main
from cluster.telemetry.log import setup_logging


def main(arguments: list[str] | None = None) -> int:
    """Run one command and return its exit code."""
    return run_main(_run, arguments)


def _run(arguments: list[str]) -> int:
    from serve.deployments import commands

    options = parse(arguments)
    setup_logging()
    # what libraries say to those who write against them, Ray's use of pydantic among it
    for category in (DeprecationWarning, PendingDeprecationWarning, FutureWarning):
        warnings.simplefilter("ignore", category)
    warnings.filterwarnings("ignore", message="Using extra keyword arguments on `Field`")
    return int(getattr(commands, options.command)(options))


def parse(arguments: list[str]) -> SimpleNamespace:
    """The command line, by the declarations of the verbs."""
    return parse_words(arguments, deploy, endpoints, predict, undeploy, rollback, promote, module="serve.deployments")


if __name__ == "__main__":
    sys.exit(main())
