"""`manta check`, `manta explain`, `manta schema`: about a spec, before anything runs."""

from __future__ import annotations

from typing import Any

import typer

from cluster.cli.children import run_module
from cluster.cli.options import AsJson, Overrides, SpecPath
from cluster.command import emit_json
from cluster.entrypoints import COMMAND_MODULES


def register(app: typer.Typer) -> None:
    """Add the verbs."""
    app.command()(check)
    app.command()(explain)
    app.command()(schema)


def check(spec: SpecPath, override: Overrides = None, as_json: AsJson = False) -> None:
    """Check all of a spec that needs no data, and print every problem at once."""
    from cluster.runtime.extras import check_extras
    from cluster.spec.rules import load_checked

    loaded = load_checked(spec, override or [])
    check_extras(loaded)
    if as_json:
        emit_json({"ok": True, "spec": loaded.model_dump(mode="json")})
    else:
        typer.echo(f"{spec} is a valid spec. 'manta explain {spec}' shows what it would do with your data.")


def explain(spec: SpecPath, override: Overrides = None, as_json: AsJson = False) -> int:
    """Print the resolved run: every auto with its reason, the batch equation, the learning-rate curve, memory."""
    from cluster.spec.rules import load_checked

    load_checked(spec, override or [])  # a wrong spec is told here, without starting another process
    sets = [item for value in override or [] for item in ("--set", value)]
    return run_module(COMMAND_MODULES["explain"], [str(spec), *sets, *(["--json"] if as_json else [])])


def schema() -> None:
    """Print the JSON Schema of a spec, for editors that complete YAML."""
    emit_json(spec_schema())


def spec_schema() -> dict[str, Any]:
    """JSON Schema (2020-12) of the YAML."""
    from cluster.spec.run import RunSpec

    return {"$schema": "https://json-schema.org/draft/2020-12/schema", **RunSpec.model_json_schema()}
