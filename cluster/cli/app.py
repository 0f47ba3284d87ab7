"""The `manta` command: registers the verbs, sets up logging, turns errors into sentences and exit codes.

Invariant: importing this loads neither torch nor ray, and `manta --help` answers in under a second.
"""

from __future__ import annotations

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
    help="From a dataset and a PyTorch model to an autoscaled endpoint, on a Ray cluster, by one YAML.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
VERBS = (spec_verbs, data_verbs, run_verbs, runs_verbs, bundle_verbs, compress_verb, endpoints, cluster_verbs, probe)
for verbs in VERBS:
    verbs.register(app)


def run() -> None:
    """Console entry point."""
    run_app(app)
