"""`python -m serve.deployments COMMAND`: what `manta deploy`, `endpoints`, `predict`, `undeploy`, `rollback` start."""

from __future__ import annotations

import argparse
import sys
import warnings
from pathlib import Path

from cluster.command import run_main
from cluster.telemetry.log import setup_logging


def main(arguments: list[str] | None = None) -> int:
    """Run one command and return its exit code."""
    return run_main(_run, arguments)


def _run(arguments: list[str]) -> int:
    from serve.deployments import commands

    options = parse(arguments)
    setup_logging()
    # ray/serve/_private/config.py gives pydantic's Field keywords of its own, once a field
    warnings.filterwarnings("ignore", message="Using extra keyword arguments on `Field`")
    return int(getattr(commands, options.command)(options))


def parse(arguments: list[str] | None) -> argparse.Namespace:
    """The command line. `cluster/cli/endpoints.py` has checked what a person typed."""
    parser = argparse.ArgumentParser(prog="python -m serve.deployments", description=__doc__)
    commands = parser.add_subparsers(dest="command", required=True)
    deploy = _command(commands, "deploy")
    deploy.add_argument("bundle", type=Path)
    deploy.add_argument("--name")
    deploy.add_argument("--variant")
    deploy.add_argument("--host", default="127.0.0.1")
    deploy.add_argument("--port", type=int, default=8000)
    deploy.add_argument("--min-replicas", type=int)
    deploy.add_argument("--max-replicas", type=int)
    deploy.add_argument("--device", choices=("cpu", "cuda"))
    deploy.add_argument("--versions")
    deploy.add_argument("--token-file")
    deploy.add_argument("--admin-token-file")
    listing = _command(commands, "endpoints")
    listing.add_argument("--watch", action="store_true")
    predict = _command(commands, "predict")
    predict.add_argument("name")
    predict.add_argument("rows", type=Path)
    predict.add_argument("--version", default="")
    rollback = _command(commands, "rollback")
    rollback.add_argument("name")
    _command(commands, "undeploy").add_argument("name")  # asks Ray, not the endpoint: it has no token to send
    for command in (listing, predict, rollback):
        command.add_argument("--token-file")
    return parser.parse_args(arguments)


def _command(commands: argparse._SubParsersAction, name: str) -> argparse.ArgumentParser:
    command: argparse.ArgumentParser = commands.add_parser(name, allow_abbrev=False)  # --token is not --token-file
    command.add_argument("--address")
    command.add_argument("--json", action="store_true")
    return command


if __name__ == "__main__":
    sys.exit(main())
