"""The `manta` command."""

from __future__ import annotations


def main() -> None:
    """Console entry point."""
    from cluster.cli.app import run

    run()
