"""The `manta` command."""

from __future__ import annotations


def main() -> None:
    """Console entry point."""
    try:
        from cluster.cli.app import run
    except KeyboardInterrupt:  # importing takes a moment, and nothing has begun
        raise SystemExit(1) from None
    run()
