"""`manta --help`: every verb in the panel of its file."""

from __future__ import annotations

import importlib
from typing import Any

import pytest
import typer

from cluster.cli.app import app, call

PANELS = ("Runs", "Cluster", "Serving", "Data", "Bundles")


def verbs() -> dict[str, Any]:
    """Name -> command of the first level."""
    found: dict[str, Any] = typer.main.get_command(app).commands
    return found


@pytest.mark.parametrize("panel", PANELS)
def test_a_panel_has_the_verbs_of_its_file(panel: str, capsys: pytest.CaptureFixture[str]) -> None:
    module = importlib.import_module(f"cluster.cli.{panel.lower()}")
    own = typer.Typer()
    module.register(own)
    names = [command.callback.__name__ for command in own.registered_commands if command.callback]
    names += [str(group.name) for group in own.registered_groups]
    assert sorted(names) == sorted(name for name, verb in verbs().items() if verb.rich_help_panel == panel)
    assert call(["--help"]) == 0
    assert f" {panel} " in capsys.readouterr().out


def test_no_verb_is_outside_the_panels() -> None:
    assert {verb.rich_help_panel for verb in verbs().values()} == set(PANELS)
